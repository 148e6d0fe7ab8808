"""Going up by solving each step's implicit equation: `z_high = a z_low + b eps(z_high)`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pivotal.query import Algorithm, Progress
from pivotal.schedule import NoiseLevel, Schedule

from .base import Inverted
from .checks import require_finite_sigma

Solver = Callable[[Tensor, NoiseLevel, NoiseLevel], Algorithm[tuple[Tensor, Tensor]]]
"""(latents at low, low, high) to (latents at high, residuals [B, iterations])."""


def climb(schedule: Schedule, latents: Tensor, solve: Solver, method: str) -> Algorithm[Inverted]:
    """Latents [B, C, h, w] to noise, each step up by `solve`.

    Diagnostics: `residuals` [B, steps, iterations], root mean squares, clean to noisy. Raises
    ValueError at zero terminal SNR.
    """
    require_finite_sigma(schedule, method)
    found = []
    for step, (low, high) in enumerate(schedule.ascending()):
        yield from Progress("invert", step, schedule.steps)
        latents, residuals = yield from solve(latents, low, high)
        found.append(residuals)
    return Inverted(noise=latents, diagnostics={"residuals": torch.stack(found, dim=1)})
