"""What the finite-difference method's corrections leave over, step by step, for each odd timestep.

    PYTHONPATH=benchmarks python -m methods.corrections [--scenes 2] [--scale 3 --scale 5]

Every late step of the way up leaves a residual: where it came from less where the sampler's own
step down, asked at t1, leads from what was kept. In sigma space (divided by sqrt(alpha_bar)) a step
carries on unchanged what was left before it, but for the network's answer to it, so residuals add
up. How large each is, and how alike those of neighbouring steps are, tell apart two ways to a
better round trip: smaller residuals, or ones that cancel.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from methods.measuring import Scenes, scenes_of
from methods.results import RESULTS
from methods.table import environment
from pivotal.driver import drive
from pivotal.engine import Engine
from pivotal.inversion.finite_difference import FiniteDifferenceOptions, grid, refine
from pivotal.query import Algorithm
from pivotal.runtime.torch_denoiser import TorchDenoiser
from pivotal.sampling.guidance import guided_noise
from pivotal.sampling.steps import ddim_coefficients
from pivotal.schedule import NoiseLevel, Schedule
from shapes.cases import EVALUATION_SEED

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "none": {"refine_iterations": 0},
    "offset 0": {"earlier": 0.0},
    "offset 0.25": {"earlier": 0.25},
    "offset 0.5": {"earlier": 0.5},
    "frozen": {"gradient": "frozen"},
    "exact": {"gradient": "exact"},
}


def down(
    latents: Tensor, low: NoiseLevel, high: NoiseLevel, scenes: Scenes, scale: float
) -> Algorithm[Tensor]:
    """The sampler's step [B, C, h, w] from `high` to `low`."""
    noise = yield from guided_noise(latents, high, scenes.conditioning, scenes.null, scale)
    a, b = ddim_coefficients(high, low)
    return a * latents + b * noise.eps


def walk(
    levels: Schedule, start: Tensor, first: int, scenes: Scenes, options: FiniteDifferenceOptions
) -> Algorithm[dict[str, float]]:
    """The late steps from `start` [B, C, h, w] at level `first` up, and back down.

    residual: mean over steps of the root mean square in sigma space. alike: the mean cosine of
    neighbouring steps' residuals, scene by scene. sum: root mean square of the residuals' sum.
    round_trip_db: of the late steps alone, in latents. fall: the corrections' own error, as they
    ask it, last over first.
    """
    latents, scale = start, options.guidance_scale
    pairs = list(levels.ascending())[first:]
    residuals, falls = [], []
    for low, high in pairs:
        noise = yield from guided_noise(latents, low, scenes.conditioning, scenes.null, scale)
        a, b = ddim_coefficients(low, high)
        kept = a * latents + b * noise.eps
        if options.refine_iterations:
            kept, errors = yield from refine(
                latents, kept, low, high, scenes.conditioning, scenes.null, options
            )
            falls += (errors[:, -1] / errors[:, 0]).tolist()
        came = yield from down(kept, low, high, scenes, scale)
        residuals.append((latents - came) / low.alpha_bar**0.5)
        latents = kept
    for low, high in reversed(pairs):
        latents = yield from down(latents, low, high, scenes, scale)
    flat = torch.stack(residuals).flatten(2).double()  # [steps, B, elements]
    neighbours = torch.cosine_similarity(flat[1:], flat[:-1], dim=2)
    back = (latents - start).double().square().mean(dim=(1, 2, 3))
    known = [fall for fall in falls if fall == fall]
    return {
        "residual": float(flat.square().mean(dim=2).sqrt().mean()),
        "alike": float(neighbours.mean()),
        "sum": float(flat.sum(dim=0).square().mean(dim=1).sqrt().mean()),
        "round_trip_db": float((-10 * back.log10()).mean()),
        "fall": statistics.median(known) if known else float("nan"),
    }


def early(levels: Schedule, first: int, scenes: Scenes, scale: float) -> Algorithm[Tensor]:
    """DDIM up under guidance, asked at the source, as the method's first steps: [B, C, h, w]."""
    latents = scenes.latents
    for low, high in list(levels.ascending())[:first]:
        noise = yield from guided_noise(latents, low, scenes.conditioning, scenes.null, scale)
        a, b = ddim_coefficients(low, high)
        latents = a * latents + b * noise.eps
    return latents


def measured(
    engine: Engine,
    scenes: Scenes,
    scale: float,
    steps: int,
    variants: Mapping[str, Mapping[str, Any]] = VARIANTS,
) -> dict[str, Any]:
    """`walk`'s figures for every variant, all from the same latents."""
    denoiser = TorchDenoiser(engine.model.unet, engine.model.levels.config.prediction_type)
    levels = grid(engine.model.levels.schedule(steps))
    first = int(steps * FiniteDifferenceOptions().refine_skip) + 1
    start = drive(early(levels, first, scenes, scale), denoiser)
    return {
        name: drive(
            walk(
                levels,
                start,
                first,
                scenes,
                FiniteDifferenceOptions(guidance_scale=scale, tolerance=0.0, **given),
            ),
            denoiser,
        )
        for name, given in variants.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--scenes", type=int, default=2)
    parser.add_argument("--scale", type=float, action="append")
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine.load(given.model, device="cpu")
    scenes = scenes_of(engine, given.scenes, EVALUATION_SEED)
    console = Console(width=120)
    path = RESULTS.with_name("corrections.jsonl")
    for scale in given.scale or (3.0, 5.0):
        found = measured(engine, scenes, scale, given.steps)
        row = {
            "scale": scale, "variants": found, "scenes": given.scenes, "steps": given.steps,
            "fingerprint": engine.model.fingerprint, **environment(given.model),
        }  # fmt: skip
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, figures in found.items():
            said = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
            console.print(f"{scale:g}, {name}: {said}")


if __name__ == "__main__":
    main()
