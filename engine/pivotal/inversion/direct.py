"""Direct inversion: DDIM's trajectory as pivots, and the source put back on them step by step.

Ju et al. 2023, "Direct Inversion: Boosting Diffusion-based Editing with 3 Lines of Code"
(arXiv:2310.01506), Algorithm 1. The paper stores the difference between pivot and step, which
fits one guidance scale; storing the pivots themselves serves every one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning
from pivotal.sampling.ddim import sample
from pivotal.schedule import Schedule

from . import ddim
from .base import Inverted
from .pivots import KeptOnPivots


@dataclass(frozen=True)
class DirectOptions:
    """guidance_scale: on the way up, 1 in the paper."""

    guidance_scale: float = 1.0


def invert(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    options: DirectOptions,
) -> Algorithm[Inverted]:
    """Latents [B, C, h, w] float32 to noise and `pivots` [B, steps + 1, C, h, w], noisiest first; a
    UNet row each step and image.
    """
    up = ddim.DDIMOptions(guidance_scale=options.guidance_scale)
    pivots = yield from ddim.trajectory(schedule, latents, conditioning, null, up)
    return Inverted(noise=pivots[-1], stored={"pivots": torch.stack(pivots[::-1], dim=1)})


def replay(
    schedule: Schedule,
    inverted: Inverted,
    conditioning: Conditioning,
    null: Conditioning,
    guidance_scale: float,
    control: Control,
    options: DirectOptions,
) -> Algorithm[Tensor]:
    """Sample R rows back by DDIM; after each step the source row is put back on its pivot.

    Exact for the source by construction, at any guidance. Returns latents [R, C, h, w].
    """
    kept = KeptOnPivots(control, inverted.stored["pivots"])
    return (
        yield from sample(
            schedule, inverted.noise, conditioning, lambda step: null, guidance_scale, kept
        )
    )
