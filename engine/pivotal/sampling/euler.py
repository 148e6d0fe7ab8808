"""Samplers in sigma space, `x = z / sqrt(alpha_bar)`: Euler, and Euler with fresh noise each step.

Karras et al. 2022 (arXiv:2206.00364), Algorithm 2 without churn, and k-diffusion's "ancestral"
step. dx/dsigma is eps, so that Euler is DDIM by another name.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning, Progress
from pivotal.schedule import NoiseLevel, Schedule

from .guidance import guided_noise

Draw = Callable[[int, Tensor], Tensor]
"""(step, latents [R, C, h, w]) to fresh noise of their shape and dtype."""


def sample(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Callable[[int], Conditioning],
    guidance_scale: float,
    control: Control,
) -> Algorithm[Tensor]:
    """Latents [R, C, h, w] at the noisiest level to the clean one by Euler's steps.

    Raises ValueError at zero terminal SNR, where sigma is infinite.
    """
    require_finite_sigma(schedule)
    for step, high, low in schedule.descending():
        yield from Progress("sample", step, schedule.steps)
        noise = yield from guided_noise(
            latents, high, conditioning, null(step), guidance_scale, control.routes(step)
        )
        x = to_sigma_space(latents, high) + (low.sigma - high.sigma) * noise.eps
        latents = control.after_step(step, from_sigma_space(x, low), noise.word_maps)
    return latents


def sample_ancestral(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Callable[[int], Conditioning],
    guidance_scale: float,
    control: Control,
    *,
    draw: Draw,
) -> Algorithm[Tensor]:
    """As `sample`, but each step goes further down and comes up again with fresh noise."""
    require_finite_sigma(schedule)
    for step, high, low in schedule.descending():
        yield from Progress("sample", step, schedule.steps)
        noise = yield from guided_noise(
            latents, high, conditioning, null(step), guidance_scale, control.routes(step)
        )
        down, up = ancestral_sigmas(high.sigma, low.sigma)
        x = to_sigma_space(latents, high) + (down - high.sigma) * noise.eps
        if up > 0:
            x = x + up * draw(step, latents)
        latents = control.after_step(step, from_sigma_space(x, low), noise.word_maps)
    return latents


def ancestral_sigmas(high: float, low: float) -> tuple[float, float]:
    """(down, up): `down^2 + up^2 = low^2`, with the variance of DDPM's posterior in sigma space."""
    if high == 0:
        return low, 0.0
    up = min(low, math.sqrt(max(low**2 * (high**2 - low**2) / high**2, 0.0)))
    return math.sqrt(low**2 - up**2), up


def to_sigma_space(latents: Tensor, level: NoiseLevel) -> Tensor:
    return latents / math.sqrt(level.alpha_bar)


def from_sigma_space(x: Tensor, level: NoiseLevel) -> Tensor:
    return x * math.sqrt(level.alpha_bar)


def seeded(seeds: list[int]) -> Draw:
    """Fresh noise with a generator for each row, so that company changes nothing. Equal seeds give
    rows equal noise: an edit's source and targets share theirs.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(step: int, latents: Tensor) -> Tensor:
        if latents.shape[0] != len(generators):
            raise ValueError(f"{len(generators)} seeds for {latents.shape[0]} rows of latents")
        rows = [
            torch.randn(latents.shape[1:], generator=generator, dtype=torch.float64)
            for generator in generators
        ]
        return torch.stack(rows).to(latents)

    return draw


def require_finite_sigma(schedule: Schedule) -> None:
    """Raise ValueError where sigma is infinite."""
    if schedule.levels[-1].alpha_bar == 0:
        raise ValueError(
            "a sampler in sigma space needs a finite sigma_max and this schedule ends at zero "
            "terminal SNR; choose ddim"
        )
