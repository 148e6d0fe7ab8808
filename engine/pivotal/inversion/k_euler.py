"""k-Euler inversion: the sampler in sigma space run backwards.

"Running the sampler backwards" (Reddit, September 2022). Where the derivative is taken, whether it
is corrected, and the grid decide whether the noise comes out as noisy as sampling expects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning, Progress
from pivotal.sampling.euler import from_sigma_space, sample, to_sigma_space
from pivotal.sampling.grids import GRIDS, level_at_sigma, respaced, sigma_min
from pivotal.sampling.guidance import guided_noise
from pivotal.schedule import NoiseLevel, NoiseLevels, Schedule

from .base import Inverted
from .checks import require_finite_sigma, require_one_of, require_within

DERIVATIVES = ("source", "destination", "mean")


@dataclass(frozen=True)
class KEulerOptions:
    """derivative_at: the sigma, and its timestep, at which a step's derivative is taken: the
    step's lower end (at least the smallest that the network knows), its upper one, or their mean.

    heun: a second derivative, at the upper end, is averaged with the first. grid: of both ways;
    Karras's comes nearest to the flow in as many steps (docs/studies.md). invert_steps: of the way
    up, the sampler's count if None. guidance_scale: of the way up; 0 asks the empty prompt alone,
    as the first author did.
    """

    derivative_at: Literal["source", "destination", "mean"] = "source"
    heun: bool = True
    grid: Literal["schedule", "linear", "karras"] = "karras"
    invert_steps: int | None = None
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        require_one_of("derivative_at", self.derivative_at, DERIVATIVES)
        require_one_of("grid", self.grid, GRIDS)
        if self.invert_steps is not None:
            require_within("invert_steps", self.invert_steps, 1)


def invert(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    options: KEulerOptions,
) -> Algorithm[Inverted]:
    """Latents [B, C, h, w] float32 to noise; a UNet row each step and image, two with Heun's
    correction.

    Diagnostics: `noise_std_ratio` [B], the result's standard deviation over sigma_max, in sigma
    space: 1 is what sampling expects.
    """
    require_finite_sigma(schedule, "k-Euler inversion")
    up = respaced(schedule, options.invert_steps or schedule.steps, options.grid)
    smallest = _smallest(schedule)
    x = to_sigma_space(latents, up.levels[0])
    for step, (low, high) in enumerate(up.ascending()):
        yield from Progress("invert", step, up.steps)
        apart = high.sigma - low.sigma
        derivative = yield from _derivative(
            x, _asked(low, high, smallest, schedule, options), conditioning, null, options
        )
        if options.heun:
            corrected = yield from _derivative(
                x + apart * derivative, high, conditioning, null, options
            )
            derivative = (derivative + corrected) / 2
        x = x + apart * derivative
    ratio = x.flatten(1).std(dim=1) / up.levels[-1].sigma
    return Inverted(
        noise=from_sigma_space(x, up.levels[-1]), diagnostics={"noise_std_ratio": ratio}
    )


def replay(
    schedule: Schedule,
    inverted: Inverted,
    conditioning: Conditioning,
    null: Conditioning,
    guidance_scale: float,
    control: Control,
    options: KEulerOptions,
) -> Algorithm[Tensor]:
    """Sample R rows back by Euler on the same kind of grid. Returns latents [R, C, h, w]."""
    down = grid(schedule, options)
    return (
        yield from sample(
            down, inverted.noise, conditioning, lambda step: null, guidance_scale, control
        )
    )


def grid(schedule: Schedule, options: KEulerOptions) -> Schedule:
    """The levels that `replay` goes through."""
    return respaced(schedule, schedule.steps, options.grid)


def _derivative(
    x: Tensor,
    level: NoiseLevel,
    conditioning: Conditioning,
    null: Conditioning,
    options: KEulerOptions,
) -> Algorithm[Tensor]:
    """`(x - denoised) / sigma`, which is eps asked at `x / sqrt(1 + sigma^2)`."""
    noise = yield from guided_noise(
        from_sigma_space(x, level), level, conditioning, null, options.guidance_scale
    )
    return noise.eps


def _asked(
    low: NoiseLevel,
    high: NoiseLevel,
    smallest: NoiseLevel,
    schedule: Schedule,
    options: KEulerOptions,
) -> NoiseLevel:
    """The level at which a step's derivative is taken."""
    if options.derivative_at == "destination":
        return high
    if options.derivative_at == "source":
        return low if low.sigma >= smallest.sigma else smallest
    middle = max((low.sigma + high.sigma) / 2, smallest.sigma)
    return level_at_sigma(NoiseLevels(schedule.config), middle)


def _smallest(schedule: Schedule) -> NoiseLevel:
    levels = NoiseLevels(schedule.config)
    return level_at_sigma(levels, sigma_min(levels))
