"""Negative-prompt inversion: the source's prompt stands in for the fitted null embedding.

Miyake et al. 2023 (arXiv:2305.16807): at the end of null-text's fit the null embedding predicts
what the prompt predicts, so nothing need be fitted. With proximal guidance on top, Han et al. 2023,
"ProxEdit" (arXiv:2306.05414): only where the prompts differ much is guidance let act.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning, Noise, Progress
from pivotal.sampling.guidance import both_noises
from pivotal.sampling.steps import ddim_step
from pivotal.schedule import NoiseLevel, Schedule

from . import ddim
from .base import Inverted
from .checks import require_one_of, require_within

PROXIMAL = ("none", "soft", "hard")


@dataclass(frozen=True)
class NegativePromptOptions:
    """proximal: threshold of the guidance difference eps_c - eps_u: soft (l1) shrinks what is left,
    hard (l0) keeps it. quantile: of the difference's magnitude, per row, that is the threshold.
    proximal_below: the timestep under which it acts; 1000 for all steps.

    inversion_guidance: from 0 to 1, how far x0 is pulled to the image where the threshold let
    nothing through, at timesteps under proximal_below (the paper's inversion guidance; its code
    uses 0.1 to 1). dilate: latents by which the part that may change is widened first.
    """

    proximal: Literal["none", "soft", "hard"] = "none"
    quantile: float = 0.7
    proximal_below: float = 400.0
    inversion_guidance: float = 0.0
    dilate: int = 1

    def __post_init__(self) -> None:
        require_one_of("proximal", self.proximal, PROXIMAL)
        require_within("quantile", self.quantile, 0, 1)
        require_within("inversion_guidance", self.inversion_guidance, 0, 1)
        require_within("dilate", self.dilate, 0)
        if self.inversion_guidance and self.proximal == "none":
            raise ValueError(
                "inversion_guidance acts where proximal guidance lets nothing change; choose "
                "proximal=soft or proximal=hard with it"
            )


def invert(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    options: NegativePromptOptions,
) -> Algorithm[Inverted]:
    """Latents [B, C, h, w] float32 to noise by DDIM at guidance 1; a UNet row each step and image.

    Stores the image's latents, `clean`, which inversion guidance pulls to.
    """
    pivots = yield from ddim.trajectory(schedule, latents, conditioning, null, ddim.DDIMOptions())
    return Inverted(noise=pivots[-1], stored={"clean": latents})


def replay(
    schedule: Schedule,
    inverted: Inverted,
    conditioning: Conditioning,
    null: Conditioning,
    guidance_scale: float,
    control: Control,
    options: NegativePromptOptions,
) -> Algorithm[Tensor]:
    """Sample R rows back by DDIM, every row's source's conditioning in the null's place.

    A source row's two predictions are one, so that its guidance is 1 whatever is asked. Returns
    latents [R, C, h, w].
    """
    latents = inverted.noise
    sources = control.sources(latents.shape[0])
    in_nulls_place = conditioning.select(sources)
    for step, high, low in schedule.descending():
        yield from Progress("sample", step, schedule.steps)
        uncond, cond = yield from both_noises(
            latents, high, conditioning, in_nulls_place, control.routes(step)
        )
        noise = proximal_guide(
            uncond, cond, guidance_scale, high, inverted.stored["clean"], options
        )
        latents = control.after_step(step, ddim_step(noise, low), noise.word_maps)
    return latents


def proximal_guide(
    uncond: Noise,
    cond: Noise,
    guidance_scale: float,
    level: NoiseLevel,
    clean: Tensor,
    options: NegativePromptOptions,
) -> Noise:
    """eps_u + w prox(eps_c - eps_u), and x0 likewise; then x0 pulled to `clean` [R, C, h, w] where
    nothing may change.
    """
    difference, of_x0 = cond.eps - uncond.eps, cond.x0 - uncond.x0
    acts = options.proximal != "none" and level.timestep < options.proximal_below
    if not acts:
        return Noise(
            uncond.eps + guidance_scale * difference,
            uncond.x0 + guidance_scale * of_x0,
            cond.word_maps,
        )
    threshold = magnitude_quantile(difference, options.quantile)
    beyond = difference.abs() > threshold
    # x0's difference is eps's times one factor at a level, so one share of both is let through.
    share = beyond.to(difference.dtype)
    if options.proximal == "soft":
        share = torch.where(beyond, 1 - threshold / difference.abs(), 0.0)
    x0 = uncond.x0 + guidance_scale * share * of_x0
    if options.inversion_guidance:
        spared = ~_widened(beyond, options.dilate)
        x0 = x0 - options.inversion_guidance * spared * (x0 - clean)
    return Noise(uncond.eps + guidance_scale * share * difference, x0, cond.word_maps)


def magnitude_quantile(values: Tensor, quantile: float) -> Tensor:
    """A quantile of |values| for each row of [R, C, h, w], linear between order statistics:
    [R, 1, 1, 1].
    """
    ordered = values.abs().flatten(1).sort(dim=1).values
    place = quantile * (ordered.shape[1] - 1)
    below = int(place)
    above = min(below + 1, ordered.shape[1] - 1)
    return torch.lerp(ordered[:, below], ordered[:, above], place - below)[:, None, None, None]


def _widened(mask: Tensor, radius: int) -> Tensor:
    """A bool mask [R, C, h, w] grown by `radius` latents in each direction."""
    size = 2 * radius + 1
    grown = torch.nn.functional.max_pool2d(mask.float(), size, stride=1, padding=radius)
    return grown > 0
