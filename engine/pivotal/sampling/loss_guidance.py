"""Loss-guided sampling: now and then the latents move against a loss on the decoded x0.

As in fast.ai's "Stable Diffusion Deep Dive" (Whitaker 2022): in sigma space, `x -= sigma^2 k
dloss/dx`, with the gradient through the decoder and the x0 formula and not through the UNet.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from torch import Tensor

from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning, Denoise, LossGradient, Noise, every_row
from pivotal.schedule import NoiseLevel

from .guidance import both_noises, cancels, guided_noise
from .losses import PictureLoss
from .steps import guide


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
        if not callable(self.loss):
            raise ValueError(
                f"loss={self.loss!r}; a function of pictures [B, 3, H, W] in [0, 1] is expected"
            )
        if not -sys.float_info.max <= self.scale <= sys.float_info.max:
            raise ValueError(f"scale={self.scale}; a finite number is expected")
        if self.periodicity < 1:
            raise ValueError(f"periodicity={self.periodicity}; 1 or more is possible")

    def acts(self, step: int) -> bool:
        return step > 0 and step % self.periodicity == 0


def predicted(
    latents: Tensor,
    step: int,
    level: NoiseLevel,
    conditioning: Conditioning,
    null: Conditioning,
    guidance_scale: float,
    control: Control,
    guidance: LossGuidance | None,
) -> Algorithm[tuple[Tensor, Noise]]:
    """A step's latents [R, C, h, w] and their guided prediction, after a loss has moved them.

    What every sampler begins a step with. The loss's gradient asks one row more an image, under
    routes two; at guidance 1, too, no unconditional rows are asked for.
    """
    routes = control.routes(step)
    if guidance is None or not guidance.acts(step):
        noise = yield from guided_noise(latents, level, conditioning, null, guidance_scale, routes)
        return latents, noise
    if cancels(guidance_scale, latents.shape[0], routes):
        noise = own = yield from Denoise.at(latents, level, conditioning, routes)
    else:
        uncond, own = yield from both_noises(latents, level, conditioning, null, routes)
        noise = guide(uncond, own, guidance_scale)
    if routes is not None:  # the gradient's own prediction follows no routes
        own = yield from Denoise.at(latents, level, conditioning)
    move = yield from loss_move(latents, noise, own, level, conditioning, guidance)
    # The noise stays as it was predicted; what it leaves of the moved latents is x0.
    x0 = noise.x0 + move / math.sqrt(level.alpha_bar)
    return latents + move, Noise(noise.eps, x0, noise.word_maps)


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
