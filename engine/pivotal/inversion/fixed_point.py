"""Fixed-point inversion: the sampler's step solved for the noisier latents, not approximated.

A DDIM step down from z to z_low uses eps at z itself, so its inverse is the root of
`z = f(z) = a z_low + b eps(z)`. Pan et al. 2023, "Effective Real Image Editing with Accelerated
Iterative Diffusion Inversion" (arXiv:2309.04907), iterates f, plainly or Anderson-accelerated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from pivotal.query import Algorithm, Conditioning
from pivotal.sampling.guidance import guided_noise
from pivotal.sampling.steps import ddim_coefficients
from pivotal.schedule import NoiseLevel, Schedule

from . import ddim
from .base import Inverted
from .checks import require_one_of, require_within
from .implicit import climb


@dataclass(frozen=True)
class FixedPointOptions:
    """iterations: the most evaluations of f each step; 1 is DDIM inversion. A row stops when its
    residual, the root mean square of f(z) - z, is at most `tolerance`.

    acceleration: "anderson" combines the last `memory` iterates so that their combined residual is
    least. guidance_scale: of the step that is inverted; replay at the same one.
    """

    iterations: int = 5
    acceleration: Literal["none", "anderson"] = "none"
    memory: int = 3
    tolerance: float = 1e-5
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        require_within("iterations", self.iterations, 1)
        require_one_of("acceleration", self.acceleration, ("none", "anderson"))
        require_within("memory", self.memory, 1)
        require_within("tolerance", self.tolerance, 0)


def invert(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    options: FixedPointOptions,
) -> Algorithm[Inverted]:
    """Latents [B, C, h, w] float32 to noise; at most `iterations` UNet rows each step and image.

    Diagnostics: `residuals` [B, steps, iterations], clean to noisy, NaN where a row had stopped.
    """
    solved = partial(solve, conditioning=conditioning, null=null, options=options)
    return (yield from climb(schedule, latents, solved, "fixed-point inversion"))


def solve(
    start: Tensor,
    low: NoiseLevel,
    high: NoiseLevel,
    conditioning: Conditioning,
    null: Conditioning,
    options: FixedPointOptions,
) -> Algorithm[tuple[Tensor, Tensor]]:
    """The root of `z = a start + b eps(z)` from z = start: latents [B, C, h, w], and the residuals
    [B, iterations]. Each row stops for itself.
    """
    a, b = ddim_coefficients(low, high)
    latents = start
    residuals = start.new_full((start.shape[0], options.iterations), torch.nan)
    active = torch.arange(start.shape[0], device=start.device)
    past: list[tuple[Tensor, Tensor]] = []  # (z, f(z)) of the active rows, oldest first
    for iteration in range(options.iterations):
        asked = latents[active]
        noise = yield from guided_noise(
            asked, high, conditioning.select(active), null.select(active), options.guidance_scale
        )
        mapped = a * start[active] + b * noise.eps
        residual = (mapped - asked).square().mean(dim=(1, 2, 3)).sqrt()
        residuals[active, iteration] = residual
        past = [*past[-options.memory :], (asked, mapped)]
        last = iteration + 1 == options.iterations
        moved = mapped
        if options.acceleration == "anderson" and not last:
            moved = anderson(past)
        going_on = (residual > options.tolerance).nonzero().flatten()
        # A row that ends takes f's own value: one more plain iteration, for nothing.
        moved = torch.where((residual > options.tolerance)[:, None, None, None], moved, mapped)
        latents = latents.index_copy(0, active, moved)
        active = active[going_on]
        past = [(z[going_on], f[going_on]) for z, f in past]
        if len(active) == 0:
            break
    return latents, residuals


def anderson(past: list[tuple[Tensor, Tensor]], *, ridge: float = 1e-10) -> Tensor:
    """The next iterate [B, ...] from pairs (z, f(z)), oldest first: Walker & Ni 2011, type II.

    Minimises the norm of the newest residual less a combination of residual differences, per row,
    in float64; `ridge` times the squares' mean keeps nearly equal differences harmless.
    """
    newest, mapped = past[-1]
    if len(past) == 1:
        return mapped
    residual = [(f - z).flatten(1).double() for z, f in past]
    steps = torch.stack([r - q for q, r in pairwise(residual)], dim=-1)
    moves = torch.stack(
        [(f - g).flatten(1).double() for (_, g), (_, f) in pairwise(past)],
        dim=-1,
    )
    squares = steps.mT @ steps  # [B, m, m]
    floor = ridge * squares.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    identity = torch.eye(squares.shape[-1], dtype=torch.float64, device=squares.device)
    tiny = torch.finfo(torch.float64).tiny
    wanted = steps.mT @ residual[-1][..., None]
    weights: Tensor = torch.linalg.solve(squares + (floor + tiny) * identity, wanted)
    combined = mapped.flatten(1).double() - (moves @ weights).squeeze(-1)
    return combined.view_as(newest).to(newest.dtype)


replay = ddim.replay
