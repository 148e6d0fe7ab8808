"""Other spacings of a schedule's noise levels, between the same two ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

from pivotal.schedule import NoiseLevel, NoiseLevels, Schedule

Grid = Literal["schedule", "linear", "karras"]
GRIDS: tuple[Grid, ...] = ("schedule", "linear", "karras")
KARRAS_RHO = 7.0


def respaced(schedule: Schedule, steps: int, grid: Grid) -> Schedule:
    """A schedule with the same clean and the same noisiest level and `steps` steps between.

    "schedule": as it is, or for another count evenly spaced in timesteps. "linear": evenly spaced
    in timesteps. "karras": from the first noisy level on, `sigma^(1/7)` evenly spaced (Karras et
    al. 2022, arXiv:2206.00364, Eq. 5). Raises ValueError at zero terminal SNR, and for steps below
    1.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}; 1 or more is possible")
    if grid == "schedule" and steps == schedule.steps:
        return schedule
    first, last = schedule.levels[0], schedule.levels[-1]
    if last.alpha_bar == 0:
        raise ValueError(
            "a schedule that ends at zero terminal SNR has no other spacing; give no other number "
            "of steps and no other grid"
        )
    levels = NoiseLevels(schedule.config)
    if grid == "karras":
        low = max(schedule.levels[1].sigma, sigma_min(levels))
        between = karras_sigmas(low, last.sigma, steps)[:-1]
        noisy = [level_at_sigma(levels, sigma) for sigma in between]
    else:
        apart = last.timestep / steps
        noisy = levels_at(levels, [apart * index for index in range(1, steps)])
    return Schedule((first, *noisy, last), schedule.config)


def levels_at(levels: NoiseLevels, timesteps: Sequence[float]) -> list[NoiseLevel]:
    """Noise levels at timesteps, also between the trained ones."""
    asked = torch.tensor(timesteps, dtype=torch.float64)
    return [
        NoiseLevel(float(alpha_bar), float(timestep))
        for timestep, alpha_bar in zip(asked, levels.alpha_bar(asked), strict=True)
    ]


def level_at_sigma(levels: NoiseLevels, sigma: float) -> NoiseLevel:
    """The level of that sigma, its timestep between trained ones log-sigma linear; clamped to the
    trained range.
    """
    table = levels.alpha_bars
    log_sigmas = 0.5 * (torch.log1p(-table) - torch.log(table))
    wanted = torch.tensor(math.log(sigma), dtype=torch.float64)
    above = int(torch.searchsorted(log_sigmas, wanted).clamp(1, len(table) - 1))
    below, over = float(log_sigmas[above - 1]), float(log_sigmas[above])
    part = min(max((math.log(sigma) - below) / (over - below), 0.0), 1.0)
    return levels_at(levels, [above - 1 + part])[0]


def sigma_min(levels: NoiseLevels) -> float:
    """The smallest sigma that the network knows."""
    return NoiseLevel(float(levels.alpha_bars[0]), 0.0).sigma


def karras_sigmas(low: float, high: float, count: int) -> list[float]:
    """`count` sigmas from low to high, evenly spaced in `sigma^(1/7)`; one alone is the highest."""
    if count == 1:
        return [high]
    start, end = low ** (1 / KARRAS_RHO), high ** (1 / KARRAS_RHO)
    return [(start + (end - start) * index / (count - 1)) ** KARRAS_RHO for index in range(count)]
