"""Samplers in sigma space, `x = z / sqrt(alpha_bar)`: Euler, and Euler with fresh noise each step.

Karras et al. 2022 (arXiv:2206.00364), Algorithm 2 without churn, and k-diffusion's "ancestral"
step. dx/dsigma is eps, so that Euler is DDIM by another name.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning, Progress
from pivotal.schedule import NoiseLevel, Schedule

from .draws import Draw, no_draw
from .loss_guidance import LossGuidance, predicted


def sample(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Callable[[int], Conditioning],
    guidance_scale: float,
    control: Control,
    *,
    loss: LossGuidance | None = None,
) -> Algorithm[Tensor]:
    """Latents [R, C, h, w] at the noisiest level to the clean one by Euler's steps.

    Raises ValueError at zero terminal SNR, where sigma is infinite.
    """
    require_finite_sigma(schedule)
    for step, high, low in schedule.descending():
        yield from Progress("sample", step, schedule.steps)
        latents, noise = yield from predicted(
            latents, step, high, conditioning, null(step), guidance_scale, control, loss
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
    eta: float = 1.0,
    draw: Draw = no_draw,
    loss: LossGuidance | None = None,
) -> Algorithm[Tensor]:
    """As `sample`, but each step goes further down and comes up again with fresh noise.

    eta: of that noise, 0 is Euler; 1 has the variance of DDPM's posterior. draw: where it comes
    from. Raises ValueError for eta outside 0 to 1.
    """
    require_finite_sigma(schedule)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}; 0 to 1 is possible")
    for step, high, low in schedule.descending():
        yield from Progress("sample", step, schedule.steps)
        latents, noise = yield from predicted(
            latents, step, high, conditioning, null(step), guidance_scale, control, loss
        )
        down, up = ancestral_sigmas(high.sigma, low.sigma, eta)
        x = to_sigma_space(latents, high) + (down - high.sigma) * noise.eps
        if up > 0:
            x = x + up * draw(step, latents)
        latents = control.after_step(step, from_sigma_space(x, low), noise.word_maps)
    return latents


def ancestral_sigmas(high: float, low: float, eta: float = 1.0) -> tuple[float, float]:
    """(down, up): `down^2 + up^2 = low^2`; at eta 1 up is DDPM's posterior's in sigma space."""
    if high == 0:
        return low, 0.0
    up = min(low, eta * math.sqrt(max(low**2 * (high**2 - low**2) / high**2, 0.0)))
    return math.sqrt(low**2 - up**2), up


def to_sigma_space(latents: Tensor, level: NoiseLevel) -> Tensor:
    return latents / math.sqrt(level.alpha_bar)


def from_sigma_space(x: Tensor, level: NoiseLevel) -> Tensor:
    return x * math.sqrt(level.alpha_bar)


def require_finite_sigma(schedule: Schedule) -> None:
    """Raise ValueError where sigma is infinite."""
    if schedule.levels[-1].alpha_bar == 0:
        raise ValueError(
            "a sampler in sigma space needs a finite sigma_max and this schedule ends at zero "
            "terminal SNR; choose ddim"
        )
