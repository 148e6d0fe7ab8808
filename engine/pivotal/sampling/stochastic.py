"""DDIM with fresh noise each step: eta from 0, which is DDIM, to 1, which is DDPM.

Song et al. 2020 (arXiv:2010.02502), Eq. 12.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning, Progress
from pivotal.schedule import Schedule

from .euler import Draw
from .guidance import guided_noise
from .posterior import posterior_mean, posterior_std


def sample(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Callable[[int], Conditioning],
    guidance_scale: float,
    control: Control,
    *,
    eta: float = 1.0,
    draw: Draw,
) -> Algorithm[Tensor]:
    """Latents [R, C, h, w] at the noisiest level to the clean one. Raises ValueError for eta
    outside 0 to 1.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}; 0 to 1 is possible")
    for step, high, low in schedule.descending():
        yield from Progress("sample", step, schedule.steps)
        noise = yield from guided_noise(
            latents, high, conditioning, null(step), guidance_scale, control.routes(step)
        )
        std = posterior_std(high, low, eta)
        moved = posterior_mean(noise, low, std)
        if std > 0:
            moved = moved + std * draw(step, latents)
        latents = control.after_step(step, moved, noise.word_maps)
    return latents
