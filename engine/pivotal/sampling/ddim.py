"""DDIM sampling, from noise to clean latents. Song et al. 2020 (arXiv:2010.02502), eta 0."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning, Progress
from pivotal.schedule import Schedule

from .guidance import guided_noise
from .steps import ddim_step


def sample(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Callable[[int], Conditioning],
    guidance_scale: float,
    control: Control,
) -> Algorithm[Tensor]:
    """Latents [R, C, h, w] float32 at the noisiest level to the clean one, an edit's control along
    the way.

    conditioning: R rows. null: a step's unconditional conditioning, R rows; null-text fits one for
    each.
    """
    for step, high, low in schedule.descending():
        yield from Progress("sample", step, schedule.steps)
        noise = yield from guided_noise(
            latents, high, conditioning, null(step), guidance_scale, control.routes(step)
        )
        latents = control.after_step(step, ddim_step(noise, low), noise.word_maps)
    return latents
