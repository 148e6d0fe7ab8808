"""ReNoise: several predictions each step, averaged, and kept noise-like.

Garibi et al. 2024, "ReNoise: Real Image Inversion Through Iterative Noising" (arXiv:2403.14602),
Algorithm 1. Its noise correction is for samplers that add noise and has no part in DDIM's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pivotal.query import Algorithm, Conditioning, Progress
from pivotal.sampling.guidance import guided_noise
from pivotal.sampling.steps import ddim_coefficients
from pivotal.schedule import NoiseLevel, Schedule

from . import ddim
from .base import Inverted
from .checks import LARGEST_SEED, require_finite_sigma, require_within
from .noise_likeness import PATCH, autocorrelation_gradient, patch_divergence_gradient


@dataclass(frozen=True)
class ReNoiseOptions:
    """Defaults are the authors' for Stable Diffusion with DDIM.

    renoise_steps: predictions after the first; 0 is DDIM inversion. Under timestep `early_below`
    predictions number `early_from` and later are averaged, above it those from `late_from` on
    (where there are none, the last one is taken). regularisation_steps: descents of each prediction
    that is kept towards uncorrelated noise (weight `pair_weight`, `rolls` random shifts each) with
    the patch statistics of honestly noised latents (weight `divergence_weight`); 0 for none. seed:
    of that noise and of the shifts. guidance_scale: of the step that is inverted,
    1 whatever the replay's unless given.
    """

    renoise_steps: int = 1
    early_below: float = 250.0
    early_from: int = 0
    late_from: int = 8
    regularisation_steps: int = 4
    pair_weight: float = 20.0
    divergence_weight: float = 0.065
    rolls: int = 5
    seed: int = 0
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        require_within("seed", self.seed, 0, LARGEST_SEED)
        for name in ("renoise_steps", "early_from", "late_from", "regularisation_steps"):
            require_within(name, getattr(self, name), 0)
        for name in ("pair_weight", "divergence_weight"):
            require_within(name, getattr(self, name), 0)
        require_within("rolls", self.rolls, 1)


def invert(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    options: ReNoiseOptions,
) -> Algorithm[Inverted]:
    """Latents [B, C, h, w] float32 to noise; `renoise_steps + 1` UNet rows each step and image, and
    one more where predictions are regularised.
    """
    require_finite_sigma(schedule, "ReNoise")
    if options.regularisation_steps and min(latents.shape[2:]) < PATCH:
        raise ValueError(
            f"ReNoise's penalties need latents of {PATCH} x {PATCH} or more and these are "
            f"{latents.shape[2]} x {latents.shape[3]}; set regularisation_steps=0"
        )
    generator = torch.Generator().manual_seed(options.seed)
    noise = torch.randn(latents.shape[1:], generator=generator, dtype=torch.float64)
    honest = noise.to(latents)  # every image's the same, so that company changes nothing
    clean = latents
    for step, (low, high) in enumerate(schedule.ascending()):
        yield from Progress("invert", step, schedule.steps)
        noised = high.alpha_bar**0.5 * clean + (1 - high.alpha_bar) ** 0.5 * honest
        latents = yield from renoise(
            latents, noised, low, high, conditioning, null, options, generator
        )
    return Inverted(noise=latents)


def renoise(
    start: Tensor,
    noised: Tensor,
    low: NoiseLevel,
    high: NoiseLevel,
    conditioning: Conditioning,
    null: Conditioning,
    options: ReNoiseOptions,
    generator: torch.Generator,
) -> Algorithm[Tensor]:
    """One step up from `start` [B, C, h, w], sides of 4 or more where predictions are regularised;
    `noised`: the image with honest noise at `high`.
    """
    a, b = ddim_coefficients(low, high)
    averaged_from = options.early_from if high.timestep < options.early_below else options.late_from
    regularised = options.regularisation_steps > 0 and averaged_from <= options.renoise_steps
    reference = noised
    if regularised:
        asked = yield from guided_noise(noised, high, conditioning, null, options.guidance_scale)
        reference = asked.eps
    latents, kept = start, []
    for number in range(options.renoise_steps + 1):
        noise = yield from guided_noise(latents, high, conditioning, null, options.guidance_scale)
        eps = noise.eps
        if number >= averaged_from:
            kept.append(eps)
            if regularised:
                eps = regularise(eps, reference, options, generator)
        latents = a * start + b * eps
    if kept:
        eps = torch.stack(kept).mean(dim=0)
        if regularised:
            eps = regularise(eps, reference, options, generator)
        latents = a * start + b * eps
    return latents


def regularise(
    eps: Tensor, reference: Tensor, options: ReNoiseOptions, generator: torch.Generator
) -> Tensor:
    """eps [B, C, h, w] after descents on both penalties, whose gradients are with respect to eps
    alone: no network is differentiated (section 4.2).
    """
    for _ in range(options.regularisation_steps):
        if options.divergence_weight:
            gradient = patch_divergence_gradient(eps, reference)
            eps = eps - options.divergence_weight * gradient.clamp(-100, 100)
        if options.pair_weight:
            for _ in range(options.rolls):
                gradient = autocorrelation_gradient(eps, generator)
                eps = eps - options.pair_weight / options.rolls * gradient
    return eps


replay = ddim.replay
