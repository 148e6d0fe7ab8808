"""DDIM inversion: the sampler's ODE run backwards. The anchor of all other methods.

Song et al. 2020, "Denoising Diffusion Implicit Models" (arXiv:2010.02502), section 5.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning, Progress
from pivotal.sampling.ddim import sample
from pivotal.sampling.grids import respaced
from pivotal.sampling.guidance import guided_noise
from pivotal.sampling.steps import ddim_coefficients
from pivotal.schedule import Schedule

from .base import Inverted


@dataclass(frozen=True)
class DDIMOptions:
    """guidance_scale: on the way up; above 1 the error is amplified and the noise leaves the
    Gaussian.

    asked_at: the timestep the network is asked at on the way up. The destination's gives half the
    round-trip error of the source's. invert_steps: of the way up, the sampler's count if None.
    """

    guidance_scale: float = 1.0
    asked_at: Literal["destination", "source"] = "destination"
    invert_steps: int | None = None

    def __post_init__(self) -> None:
        if self.asked_at not in ("destination", "source"):
            raise ValueError(
                f"asked_at={self.asked_at!r} is unknown; accepted are destination, source"
            )
        if self.invert_steps is not None and self.invert_steps < 1:
            raise ValueError(f"invert_steps={self.invert_steps}; 1 or more is possible")


def trajectory(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    options: DDIMOptions,
) -> Algorithm[list[Tensor]]:
    """Latents [B, C, h, w] at every noise level, clean to noisy: `schedule.steps + 1` tensors."""
    pivots = [latents]
    for step, (low, high) in enumerate(schedule.ascending()):
        yield from Progress("invert", step, schedule.steps)
        asked = high if options.asked_at == "destination" else low
        # The prediction is read at the level the network believes in: v and x0 then mean the eps
        # that an eps network would have said. At zero terminal SNR that level says nothing.
        read = asked if asked.alpha_bar > 0 else low
        noise = yield from guided_noise(
            latents, read, conditioning, null, options.guidance_scale, timestep=asked.timestep
        )
        a, b = ddim_coefficients(low, high)
        latents = a * latents + b * noise.eps
        pivots.append(latents)
    return pivots


def invert(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    options: DDIMOptions,
) -> Algorithm[Inverted]:
    """Latents [B, C, h, w] float32 of B images to the noise they came from; a UNet row each step
    and image.
    """
    up = respaced(schedule, options.invert_steps or schedule.steps, "schedule")
    pivots = yield from trajectory(up, latents, conditioning, null, options)
    return Inverted(noise=pivots[-1])


def replay(
    schedule: Schedule,
    inverted: Inverted,
    conditioning: Conditioning,
    null: Conditioning,
    guidance_scale: float,
    control: Control,
    options: object = None,
) -> Algorithm[Tensor]:
    """Sample R rows back by DDIM with an edit's control.

    Returns latents [R, C, h, w] at the clean level.

    inverted, conditioning and null hold R rows each. options: of the inversion; DDIM's way down
    needs none of them.
    """
    return (
        yield from sample(
            schedule, inverted.noise, conditioning, lambda step: null, guidance_scale, control
        )
    )
