"""The plainest text-to-image loop, to look at a model while it trains."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from transformers import CLIPTextModel, CLIPTokenizer

from shapes.images import to_images
from shapes.networks import LATENT_SIDE, build_scheduler


def embed(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: list[str]
) -> torch.Tensor:
    """The prompts' hidden states, padded to 77 tokens without a mask, float32 [B, 77, 128]."""
    tokens = tokenizer(
        prompts, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    hidden: torch.Tensor = text_encoder(tokens.input_ids).last_hidden_state
    return hidden


@torch.no_grad()
def sample_images(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    prompts: list[str],
    guidance_scale: float = 7.5,
    steps: int = 50,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """DDIM sampling with classifier-free guidance, uint8 [B, 64, 64, 3]."""
    scheduler = build_scheduler()
    scheduler.set_timesteps(steps)
    shape = (len(prompts), 4, LATENT_SIDE, LATENT_SIDE)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    hidden = embed(tokenizer, text_encoder, [""] * len(prompts) + prompts)
    for timestep in scheduler.timesteps:
        eps_u, eps_c = unet(torch.cat([latents] * 2), timestep, hidden).sample.chunk(2)
        eps = eps_u + guidance_scale * (eps_c - eps_u)
        latents = scheduler.step(eps, timestep, latents).prev_sample
    return to_images(vae.decode(latents / vae.config.scaling_factor).sample)
