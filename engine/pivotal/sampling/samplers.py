"""All samplers by name, from noise to clean latents on one noise-level table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from pivotal.query import Algorithm
from pivotal.schedule import NoiseLevels, Schedule

from . import ddim, dpm_solver, euler, linear_multistep, stochastic


@dataclass(frozen=True)
class Sampler:
    """`sample(schedule, latents, conditioning, null, guidance_scale, control)`; a stochastic one
    takes `draw=` besides, its source of fresh noise (`euler.seeded`).
    """

    name: str
    title: str
    paper: str
    sample: Callable[..., Algorithm[Tensor]]
    stochastic: bool = False


SAMPLERS: Mapping[str, Sampler] = {
    sampler.name: sampler
    for sampler in (
        Sampler("ddim", "DDIM", "arXiv:2010.02502", ddim.sample),
        Sampler("ddpm", "DDIM with eta, DDPM at 1", "arXiv:2010.02502", stochastic.sample, True),
        Sampler("euler", "Euler in sigma space", "arXiv:2206.00364", euler.sample),
        Sampler(
            "euler-ancestral",
            "Euler with fresh noise",
            "arXiv:2206.00364",
            euler.sample_ancestral,
            True,
        ),
        Sampler("lms", "Linear multistep, order 4", "arXiv:2202.09778", linear_multistep.sample),
        Sampler("dpm++", "DPM-Solver++(2M)", "arXiv:2211.01095", dpm_solver.sample),
    )
}


def sampler_named(name: str) -> Sampler:
    """Raises ValueError naming the accepted samplers."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler={name!r} is unknown; accepted are {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def schedule_of_step_size(levels: NoiseLevels, step_size: int) -> Schedule:
    """The grid whose steps are so many trained timesteps apart: 1000 / steps.

    Raises ValueError for a size that the trained timesteps are no multiple of.
    """
    total = levels.config.num_train_timesteps
    if step_size < 1 or total % step_size:
        raise ValueError(f"step_size={step_size}; a divisor of {total} is expected")
    return levels.schedule(total // step_size)
