"""Loss-guided sampling: now and then the latents move against a loss on the decoded x0.

As in fast.ai's "Stable Diffusion Deep Dive" (Whitaker 2022): in sigma space, `x -= sigma^2 k
dloss/dx`, with the gradient through the decoder and the x0 formula and not through the UNet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pivotal.attention_routes import AttentionRoutes
from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning, Denoise, LossGradient, Noise, Progress, every_row
from pivotal.schedule import NoiseLevel, Schedule

from .euler import require_finite_sigma
from .guidance import both_noises
from .losses import PictureLoss
from .steps import ddim_step, guide


@dataclass(frozen=True)
class LossGuidance:
    """loss: of pictures [B, 3, H, W] in [0, 1], one value a row. scale: k, its factor.

    periodicity: it acts at every so many steps, never the first. through_unet: the gradient passes
    through the conditional prediction as well.
    """

    loss: PictureLoss
    scale: float = 75.0
    periodicity: int = 5
    through_unet: bool = False

    def __post_init__(self) -> None:
        if self.periodicity < 1:
            raise ValueError(f"periodicity={self.periodicity}; 1 or more is possible")

    def acts(self, step: int) -> bool:
        return step > 0 and step % self.periodicity == 0


def sample(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Callable[[int], Conditioning],
    guidance_scale: float,
    control: Control,
    *,
    guidance: LossGuidance,
) -> Algorithm[Tensor]:
    """Latents [R, C, h, w] at the noisiest level to the clean one, by DDIM with a loss's guidance.

    A guided step asks one row more an image, under routes two. Raises ValueError at zero
    terminal SNR.
    """
    require_finite_sigma(schedule)
    for step, high, low in schedule.descending():
        yield from Progress("sample", step, schedule.steps)
        routes = control.routes(step)
        noise, own = yield from _both(
            latents, high, conditioning, null(step), guidance_scale, routes
        )
        if guidance.acts(step):
            if routes is not None:  # the gradient's own prediction follows no routes
                own = yield from Denoise.at(latents, high, conditioning)
            move = yield from loss_move(latents, noise, own, high, conditioning, guidance)
            # The noise stays as it was predicted; what it leaves of the moved latents is x0.
            latents = latents + move
            noise = Noise(noise.eps, noise.x0 + move / high.alpha_bar**0.5, noise.word_maps)
        latents = control.after_step(step, ddim_step(noise, low), noise.word_maps)
    return latents


def loss_move(
    latents: Tensor,
    noise: Noise,
    own: Noise,
    level: NoiseLevel,
    conditioning: Conditioning,
    guidance: LossGuidance,
) -> Algorithm[Tensor]:
    """How latents [R, C, h, w] should move: `-sigma^2 k dloss/dx` in sigma space, said in latents.

    noise: the guided prediction, of whose x0 the loss is taken; own: the conditional one
    alone, without routes.
    """
    timesteps, alpha_bars = every_row(latents, level)
    answer = yield from LossGradient(
        latents,
        timesteps,
        alpha_bars,
        conditioning,
        guidance.loss,
        guidance.through_unet,
        offset=noise.x0 - own.x0,
    )
    # dz = sqrt(ab) dx = -sqrt(ab) sigma^2 k dloss/dx, and dloss/dx = sqrt(ab) dloss/dz.
    return -level.alpha_bar * level.sigma**2 * guidance.scale * answer.gradient


def _both(
    latents: Tensor,
    level: NoiseLevel,
    conditioning: Conditioning,
    null: Conditioning,
    guidance_scale: float,
    routes: AttentionRoutes | None,
) -> Algorithm[tuple[Noise, Noise]]:
    """The guided prediction and the conditional one."""
    uncond, cond = yield from both_noises(latents, level, conditioning, null, routes)
    return guide(uncond, cond, guidance_scale), cond
