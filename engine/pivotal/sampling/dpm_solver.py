"""DPM-Solver++(2M): second-order multistep sampling on x0.

Lu et al. 2022, "DPM-Solver++" (arXiv:2211.01095), Algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning, Noise, Progress
from pivotal.schedule import NoiseLevel, Schedule

from .euler import require_finite_sigma
from .loss_guidance import LossGuidance, predicted
from .steps import ddim_step


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
    """Latents [R, C, h, w] at the noisiest level to the clean one.

    The first step is of first order, which is DDIM; so is one that ends at sigma 0, as the authors
    advise. Raises ValueError at zero terminal SNR.
    """
    require_finite_sigma(schedule)
    before: tuple[NoiseLevel, Tensor] | None = None
    for step, high, low in schedule.descending():
        yield from Progress("sample", step, schedule.steps)
        latents, noise = yield from predicted(
            latents, step, high, conditioning, null(step), guidance_scale, control, loss
        )
        if before is None or low.sigma == 0 or high.sigma in (low.sigma, before[0].sigma):
            moved = ddim_step(noise, low)
        else:
            moved = second_order_step(latents, noise, before, high, low)
        before = (high, noise.x0)
        latents = control.after_step(step, moved, noise.word_maps)
    return latents


def second_order_step(
    latents: Tensor,
    noise: Noise,
    before: tuple[NoiseLevel, Tensor],
    high: NoiseLevel,
    low: NoiseLevel,
) -> Tensor:
    """From `high` to `low` with x0 extrapolated through the step before: Algorithm 2, lambda = -log
    sigma.

    before: the level and x0 of the step before.
    """
    level_before, x0_before = before
    h = math.log(high.sigma / low.sigma)
    r = math.log(level_before.sigma / high.sigma) / h
    x0 = (1 + 1 / (2 * r)) * noise.x0 - 1 / (2 * r) * x0_before
    spread = math.sqrt((1 - low.alpha_bar) / (1 - high.alpha_bar))
    return spread * latents - math.sqrt(low.alpha_bar) * math.expm1(-h) * x0
