"""All samplers by name, from noise to clean latents on one noise-level table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from pivotal.query import Algorithm
from pivotal.schedule import NoiseLevels, Schedule

from . import ddim, dpm_solver, euler, linear_multistep


@dataclass(frozen=True)
class Sampler:
    """`sample(schedule, latents, conditioning, null, guidance_scale, control)`, with `loss=` if a
    loss guides it, and its options by name.

    options: each one's default, `eta` from 0 to 1 or `order` from 1 on. draws: it takes `draw=`
    as well, a source of fresh noise (`draws.seeded`).
    """

    name: str
    title: str
    paper: str
    sample: Callable[..., Algorithm[Tensor]]
    options: Mapping[str, float]
    draws: bool = False

    def options_from(self, given: Mapping[str, float]) -> dict[str, float]:
        """The options with their defaults. Raises ValueError for one that it does not have, and for
        a wrong value.
        """
        for name, value in given.items():
            if name not in self.options:
                accepted = ", ".join(self.options) or "none"
                takers = ", ".join(each.name for each in SAMPLERS.values() if name in each.options)
                raise ValueError(
                    f"sampler {self.name} has no option {name!r}, given as {value}; its options "
                    f"are: {accepted}" + (f"; {name} is for {takers}" if takers else "")
                )
            if name == "order" and (not isinstance(value, int) or value < 1):
                raise ValueError(f"order={value}; a whole number of at least 1 is expected")
            if name == "eta" and not 0 <= value <= 1:
                raise ValueError(f"eta={value}; 0 to 1 is possible")
        return {**self.options, **given}


SAMPLERS: Mapping[str, Sampler] = {
    sampler.name: sampler
    for sampler in (
        Sampler("ddim", "DDIM", "arXiv:2010.02502", ddim.sample, {"eta": 0.0}, draws=True),
        Sampler(
            "ddpm",
            "DDPM, which is DDIM at eta 1",
            "arXiv:2006.11239",
            partial(ddim.sample, eta=1.0),
            {},
            draws=True,
        ),
        Sampler("euler", "Euler in sigma space", "arXiv:2206.00364", euler.sample, {}),
        Sampler(
            "euler-ancestral",
            "Euler with fresh noise",
            "arXiv:2206.00364",
            euler.sample_ancestral,
            {"eta": 1.0},
            draws=True,
        ),
        Sampler(
            "lms",
            "Linear multistep",
            "arXiv:2202.09778",
            linear_multistep.sample,
            {"order": 4},
        ),
        Sampler("dpm++", "DPM-Solver++(2M)", "arXiv:2211.01095", dpm_solver.sample, {}),
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
