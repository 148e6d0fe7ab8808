"""DDIM sampling, from noise to clean latents: eta from 0, which is deterministic, to 1, DDPM.

Song et al. 2020 (arXiv:2010.02502), Eq. 12.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning, Progress
from pivotal.schedule import Schedule

from .draws import Draw, no_draw
from .guidance import guided_ddim_step
from .loss_guidance import LossGuidance, predicted
from .posterior import posterior_mean, posterior_std
from .steps import ddim_step


def sample(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Callable[[int], Conditioning],
    guidance_scale: float,
    control: Control,
    *,
    eta: float = 0.0,
    draw: Draw = no_draw,
    loss: LossGuidance | None = None,
) -> Algorithm[Tensor]:
    """Latents [R, C, h, w] float32 at the noisiest level to the clean one, an edit's control along
    the way.

    conditioning: R rows. null: a step's unconditional conditioning, R rows; null-text fits one for
    each. draw: where fresh noise comes from, needed for an eta above 0. Raises ValueError for eta
    outside 0 to 1.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}; 0 to 1 is possible")
    for step, high, low in schedule.descending():
        yield from Progress("sample", step, schedule.steps)
        asked = (conditioning, null(step), guidance_scale)
        std = posterior_std(high, low, eta)
        if std > 0 or (loss is not None and loss.acts(step)):
            latents, noise = yield from predicted(latents, step, high, *asked, control, loss)
            moved = ddim_step(noise, low)
            if std > 0:
                moved = posterior_mean(noise, low, std) + std * draw(step, latents)
        else:
            moved, noise = yield from guided_ddim_step(
                latents, high, low, *asked, control.routes(step)
            )
        latents = control.after_step(step, moved, noise.word_maps)
    return latents
