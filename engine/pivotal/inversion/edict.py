"""EDICT: two coupled latents, each stepped with the other's noise, so that every step has an exact
inverse.

Wallace et al. 2022, "EDICT: Exact Diffusion Inversion via Coupled Transformations"
(arXiv:2211.12446), Eq. 14 to 17. float64 latents: rounding grows by 1 / mixing each step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pivotal.attention_routes import AttentionRoutes
from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning, Noise, Progress
from pivotal.sampling.guidance import guided_noise
from pivotal.sampling.steps import ddim_coefficients
from pivotal.schedule import NoiseLevel, Schedule

from .base import Inverted
from .checks import require_finite_sigma


@dataclass(frozen=True)
class EDICTOptions:
    """mixing: p of the averaging layer; nearer to 1 the pair drifts apart, further from it rounding
    grows faster. guidance_scale: up and down must agree for exactness; 3 in the paper.
    """

    guidance_scale: float = 3.0
    mixing: float = 0.93

    def __post_init__(self) -> None:
        if not 0 < self.mixing <= 1:
            raise ValueError(f"mixing={self.mixing}; above 0 and up to 1 is possible")


def invert(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    options: EDICTOptions,
) -> Algorithm[Inverted]:
    """Latents [B, C, h, w] to a pair of noises, float64: `noise` and stored `partner`; two (guided
    four) UNet rows each step and image.
    """
    require_finite_sigma(schedule, "EDICT")
    p, w = options.mixing, options.guidance_scale
    x = y = latents.double()
    for index, (low, high) in enumerate(schedule.ascending()):
        yield from Progress("invert", index, schedule.steps)
        a, b = ddim_coefficients(high, low)
        # The averaging layer undone (Eq. 16), then the two affine layers, last one first (Eq. 17).
        y = (y - (1 - p) * x) / p
        x = (x - (1 - p) * y) / p
        first, second = _in_turn(schedule.steps - 1 - index, x, y)
        noise = yield from guided_noise(first, high, conditioning, null, w)
        second = (second - b * noise.eps) / a
        noise = yield from guided_noise(second, high, conditioning, null, w)
        first = (first - b * noise.eps) / a
        x, y = _in_turn(schedule.steps - 1 - index, first, second)
    return Inverted(noise=x, stored={"partner": y})


def replay(
    schedule: Schedule,
    inverted: Inverted,
    conditioning: Conditioning,
    null: Conditioning,
    guidance_scale: float,
    control: Control,
    options: EDICTOptions,
) -> Algorithm[Tensor]:
    """Sample R pairs back, exactly at the guidance of the inversion.

    Both predictions of a step follow its routes; what the control then changes in the first of the
    pair, the second changes too. Returns the first, [R, C, h, w], in the conditioning's dtype.
    """
    x, y = inverted.noise, inverted.stored["partner"]
    p = options.mixing
    sources = control.sources(x.shape[0]).to(x.device)
    for step, high, low in schedule.descending():
        yield from Progress("sample", step, schedule.steps)
        a, b = ddim_coefficients(high, low)
        routes = control.routes(step)
        first, second = _in_turn(step, x, y)
        noise = yield from _ask(second, high, conditioning, null, guidance_scale, routes)
        first = a * first + b * noise.eps
        maps = noise.word_maps
        noise = yield from _ask(first, high, conditioning, null, guidance_scale, routes)
        second = a * second + b * noise.eps
        x, y = _in_turn(step, first, second)
        x = p * x + (1 - p) * y
        y = p * y + (1 - p) * x
        if maps is not None and noise.word_maps is not None:
            maps = (maps + noise.word_maps) / 2
        changed = control.after_step(step, x, maps)
        shifted = y + (changed - x)
        # Where a row was given its source's latents, it is given their partner as well.
        x, y = changed, torch.where(changed == changed[sources], shifted[sources], shifted)
    return x.to(conditioning.hidden_states.dtype)


def _in_turn(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the pair goes first alternates (section 4.3)."""
    return (x, y) if step % 2 == 0 else (y, x)


def _ask(
    latents: Tensor,
    level: NoiseLevel,
    conditioning: Conditioning,
    null: Conditioning,
    guidance_scale: float,
    routes: AttentionRoutes | None,
) -> Algorithm[Noise]:
    return (yield from guided_noise(latents, level, conditioning, null, guidance_scale, routes))
