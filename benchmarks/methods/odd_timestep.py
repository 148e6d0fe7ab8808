"""Why finite differences ask the unconditional pass a little earlier: a study and its plot.

    PYTHONPATH=benchmarks python -m methods.odd_timestep [--scenes 2] [--folder docs/studies]

A correction asks at t and t - offset (t1 - t) what the step down asks at t1. Where eps changes by g
over a step, the same for both passes, the guided eps is off by g (offset (w - 1) - 1): nothing at
offset = 1 / (w - 1). Here that error is measured on guided trajectories' late steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from methods.measuring import Scenes, scenes_of
from methods.results import RESULTS
from methods.table import environment
from pivotal.driver import drive
from pivotal.engine import Engine
from pivotal.inversion import ddim
from pivotal.inversion.finite_difference import FiniteDifferenceOptions, grid
from pivotal.query import Denoise, every_row
from pivotal.runtime.torch_denoiser import TorchDenoiser
from shapes.cases import EVALUATION_SEED

OFFSETS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
SCALES = (2.0, 3.0, 5.0, 7.5)


def errors(engine: Engine, scenes: Scenes, scale: float, steps: int) -> list[float]:
    """For each offset, the mean over late steps and scenes of |eps asked - eps of the step down|,
    over that of asking both passes at t.
    """
    denoiser = TorchDenoiser(engine.model.unet, engine.model.levels.config.prediction_type)
    levels = grid(engine.model.levels.schedule(steps))
    options = ddim.DDIMOptions(guidance_scale=scale, asked_at="source")
    pivots = drive(
        ddim.trajectory(levels, scenes.latents, scenes.conditioning, scenes.null, options), denoiser
    )
    late = int(steps * FiniteDifferenceOptions().refine_skip)
    found: list[list[float]] = []
    for step, (low, high) in enumerate(levels.ascending()):
        if step <= late:
            continue
        z, apart = pivots[step + 1], high.timestep - low.timestep
        asked = [(scenes.null, max(low.timestep - offset * apart, 0.0)) for offset in OFFSETS] + [
            (scenes.conditioning, t) for t in (low.timestep, high.timestep)
        ]
        asked.append((scenes.null, high.timestep))
        eps = []
        for conditioning, timestep in asked:
            timesteps, alpha_bars = every_row(z, high)
            query = Denoise(z, torch.full_like(timesteps, timestep), alpha_bars, conditioning)
            with torch.no_grad():
                eps.append(denoiser.answer(query).eps)
        *unconditional, cond, cond_down, uncond_down = eps
        wanted = uncond_down + scale * (cond_down - uncond_down)
        off = [float((u + scale * (cond - u) - wanted).abs().mean()) for u in unconditional]
        found.append(off)
    means = [statistics.fmean(column) for column in zip(*found, strict=True)]
    return [mean / means[0] for mean in means]


def draw(lines: Sequence[Sequence[float]], folder: Path) -> Path:
    """The errors against the offset, a line a guidance; a tick where the argument has its zero."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for scale, line in zip(SCALES, lines, strict=True):
        (drawn,) = axes.plot(OFFSETS, line, marker="o", label=f"guidance {scale:g}")
        axes.axvline(1 / (scale - 1), color=drawn.get_color(), linestyle=":", linewidth=1)
    axes.set(
        xlabel="offset of the unconditional pass, in steps (dotted: 1 / (guidance - 1))",
        ylabel="error of the guided eps over that at offset 0",
    )
    axes.legend()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "odd-timestep.png"
    figure.savefig(path, dpi=110)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--scenes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--folder", type=Path, default=Path("docs/studies"))
    parser.add_argument("--results", type=Path, default=RESULTS.with_name("odd_timestep.jsonl"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine.load(given.model, device="cpu")
    scenes = scenes_of(engine, given.scenes, EVALUATION_SEED)
    lines = [errors(engine, scenes, scale, given.steps) for scale in SCALES]
    row = {
        "offsets": OFFSETS, "errors": dict(zip(map(str, SCALES), lines, strict=True)),
        "scenes": given.scenes, "steps": given.steps, "fingerprint": engine.model.fingerprint,
        **environment(given.model),
    }  # fmt: skip
    given.results.parent.mkdir(parents=True, exist_ok=True)
    with given.results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    console = Console()
    for scale, line in zip(SCALES, lines, strict=True):
        console.print(scale, [round(value, 3) for value in line])
    console.print(str(draw(lines, given.folder)))


if __name__ == "__main__":
    main()
