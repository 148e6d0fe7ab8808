"""Exact inversion by linear two-step samplers: each latents from the two before, and so from the
two after.

`z_{i-1} = far z_{i+1} + near z_i + slope eps(z_i)` is solved for z_{i+1} without asking the network
anew. Two samplers of that form: BDIA (Zhang et al. 2023, arXiv:2307.10829, Eq. 17) and the optimal
BELM (Wang et al. 2024, arXiv:2410.07273, Eq. 18). float64 latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning, Progress
from pivotal.sampling.guidance import guided_noise
from pivotal.sampling.steps import ddim_coefficients
from pivotal.schedule import NoiseLevel, Schedule

from .base import Inverted
from .checks import require_finite_sigma

Coefficients = Callable[[NoiseLevel, NoiseLevel, NoiseLevel], tuple[float, float, float]]
"""(low, middle, high) to (far, near, slope)."""


@dataclass(frozen=True)
class BELMOptions:
    """guidance_scale: up and down must agree for exactness."""

    guidance_scale: float = 1.0

    def coefficients(
        self, low: NoiseLevel, middle: NoiseLevel, high: NoiseLevel
    ) -> tuple[float, float, float]:
        """The combination of least local error: with `h = sigma_i - sigma_{i-1}` and `H =
        sigma_{i+1} - sigma_i`, in sigma space `(h/H)^2, 1 - (h/H)^2, -h (h + H) / H`.
        """
        down, up = middle.sigma - low.sigma, high.sigma - middle.sigma
        far = (down / up) ** 2
        signal, near_signal, far_signal = (level.alpha_bar**0.5 for level in (low, middle, high))
        return (
            far * signal / far_signal,
            (1 - far) * signal / near_signal,
            -down * (down + up) / up * signal,
        )


@dataclass(frozen=True)
class BDIAOptions:
    """gamma: how much of the step from z_{i+1} is taken back and made anew; 1 does not amplify
    rounding, 0 is DDIM and has no inverse. guidance_scale: as BELM's.
    """

    guidance_scale: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma={self.gamma}; above 0 and up to 1 is possible")

    def coefficients(
        self, low: NoiseLevel, middle: NoiseLevel, high: NoiseLevel
    ) -> tuple[float, float, float]:
        """`gamma` of (z_{i+1} less DDIM's step up to it), plus DDIM's step down, both with eps of
        z_i.
        """
        a, b = ddim_coefficients(middle, low)
        up_a, up_b = ddim_coefficients(middle, high)
        return self.gamma, a - self.gamma * up_a, b - self.gamma * up_b


TwoStepOptions = BELMOptions | BDIAOptions


def invert(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    options: TwoStepOptions,
) -> Algorithm[Inverted]:
    """Latents [B, C, h, w] to the noisiest two, float64: `noise`, and stored `second` next to it; a
    (guided two) UNet row each step and image. The first step up is DDIM's.
    """
    require_finite_sigma(schedule, "two-step inversion")
    w, levels = options.guidance_scale, schedule.levels
    behind = now = latents.double()
    start = _clean(schedule)
    for index in range(start, schedule.steps):
        yield from Progress("invert", index, schedule.steps)
        middle, high = levels[index], levels[index + 1]
        if index == start:
            noise = yield from guided_noise(now, high, conditioning, null, w)
            a, b = ddim_coefficients(middle, high)
            behind, now = now, a * now + b * noise.eps
            continue
        noise = yield from guided_noise(now, middle, conditioning, null, w)
        far, near, slope = options.coefficients(levels[index - 1], middle, high)
        behind, now = now, (behind - near * now - slope * noise.eps) / far
    return Inverted(noise=now, stored={"second": behind})


def replay(
    schedule: Schedule,
    inverted: Inverted,
    conditioning: Conditioning,
    null: Conditioning,
    guidance_scale: float,
    control: Control,
    options: TwoStepOptions,
) -> Algorithm[Tensor]:
    """Sample R rows back, exactly at the guidance of the inversion.

    The first step is DDIM's, and each source's distance to its stored second is added to all its
    rows, so that a target equal to its source stays equal. Returns latents [R, C, h, w] in the
    conditioning's dtype.
    """
    behind = now = inverted.noise
    sources = control.sources(now.shape[0]).to(now.device)
    own = (sources == torch.arange(len(sources), device=now.device))[:, None, None, None]
    start, levels = _clean(schedule), schedule.levels
    for step, high, low in schedule.descending():
        yield from Progress("sample", step, schedule.steps)
        noise = yield from guided_noise(
            now, high, conditioning, null, guidance_scale, control.routes(step)
        )
        index = schedule.steps - step  # of the level that `now` is at
        if index <= start:  # from a level to itself
            reached = now
        elif step == 0:
            a, b = ddim_coefficients(high, low)
            reached, second = a * now + b * noise.eps, inverted.stored["second"]
            reached = torch.where(own, second, reached + (second - reached)[sources])
        else:
            far, near, slope = options.coefficients(low, high, levels[index + 1])
            reached = far * behind + near * now + slope * noise.eps
        behind, now = now, control.after_step(step, reached, noise.word_maps)
    return now.to(conditioning.hidden_states.dtype)


def _clean(schedule: Schedule) -> int:
    """The index of the level that latents are clean at: 1 where the last step stands still."""
    return int(schedule.steps > 1 and schedule.levels[1].alpha_bar == schedule.levels[0].alpha_bar)
