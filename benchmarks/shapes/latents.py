"""Training scenes encoded once: every scene has a number; captions are drawn anew each time."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from pivotal.bench.shapes.scenes import Scene, draw, sample_scene
from shapes.images import to_tensor

CACHE_SEED = 1


@lru_cache(maxsize=65_536)
def scene_number(number: int) -> Scene:
    """The training scene of a number."""
    return sample_scene(np.random.default_rng((CACHE_SEED, number)))


def encode_scenes(vae: AutoencoderKL, folder: Path, count: int) -> float:
    """Write latents.npy (means, float32 [count, 4, 16, 16], unscaled) and latents.json (the scale).

    The scaling factor is 1 over the standard deviation of all latents, as in Stable Diffusion.
    """
    vae.eval()
    shape = (count, 4, 16, 16)
    cache = np.lib.format.open_memmap(folder / "latents.npy", "w+", np.float32, shape)
    for first in range(0, count, 64):
        last = min(first + 64, count)
        images = np.stack([draw(scene_number(number))[0] for number in range(first, last)])
        with torch.no_grad():
            cache[first:last] = vae.encode(to_tensor(images)).latent_dist.mode().numpy()
    cache.flush()
    scaling_factor = round(1 / float(cache.std()), 5)
    (folder / "latents.json").write_text(json.dumps({"scaling_factor": scaling_factor}))
    return scaling_factor
