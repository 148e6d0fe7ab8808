"""Null-text inversion timed against a plain transcription of the paper, in pairs, in one process.

    python benchmarks/null_text_speed.py [--images 1] [--steps 50] [--pairs 3]
        [--method null-text-line-search] [--set iterations=3] [--against one-by-one] [--compile]
        [--profile] [--passes]

Drawn scenes are inverted as one batch, and by the other side one after the other: by the plain
transcription, or by our own method. Each pair runs in turn, so that a machine whose speed drifts
slows both; CPU seconds stand beside the clock's, which others' work lengthens. No time is reported
where the latents come back with fewer decibels than the other side's. Appends one JSON line to
benchmarks/results/<device>/null_text_speed.jsonl and prints it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pivotal.bench.environment import environment
from pivotal.control import NoEdit
from pivotal.driver import Denoiser, drive
from pivotal.engine import Engine
from pivotal.images import fit, read_image, to_tensor
from pivotal.inversion import ddim, null_text
from pivotal.inversion.base import Inverted
from pivotal.inversion.registry import method_named
from pivotal.query import Conditioning, Denoise, NoiseGradient, Query
from pivotal.runtime.torch_denoiser import TorchDenoiser

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from baselines.attention import explicit_copy  # noqa: E402
from baselines.null_text import null_text_inversion  # noqa: E402
from baselines.schedule import make_schedule  # noqa: E402
from pivotal.bench.shapes.scenes import draw  # noqa: E402
from shapes.cases import edit_cases  # noqa: E402

GUIDANCE = 7.5
FEWER = 0.1  # decibels in latents that count as equal

Run = Callable[[], Tensor]
"""Inverts all images: null embeddings [B, steps, L, D]."""


@dataclass(frozen=True)
class Scenes:
    """latents: [B, C, h, w], of drawn pictures at the model's own size; prompts; nulls."""

    latents: Tensor
    conditioning: Conditioning
    null: Conditioning

    @staticmethod
    def drawn(engine: Engine, count: int) -> Scenes:
        model, cases = engine.model, edit_cases(count)
        pictures = [
            fit(read_image(draw(case.scene)[0]), model.default_size).pixels for case in cases
        ]
        with torch.no_grad():
            return Scenes(
                torch.cat([model.autoencoder.encode(to_tensor(picture)) for picture in pictures]),
                model.text.encode([case.prompt for case in cases]),
                model.text.encode([""] * count),
            )


def main() -> None:
    given = _parse()
    torch.set_num_threads(given.threads)
    engine = Engine.load(given.model)
    scenes = Scenes.drawn(engine, given.images)
    denoiser = compiled(engine) if given.compile else engine.denoiser
    if given.passes:
        write(engine, {"benchmark": "null_text_passes", **passes(engine, denoiser, scenes, given)})
        return
    sides = {"ours": ours(engine, denoiser, scenes, given)}
    if given.against == "plain":
        sides["plain"] = plain(engine, scenes, given)
    else:
        sides["one-by-one"] = one_by_one(engine, denoiser, scenes, given)
    if given.profile:
        spent = {name: shares(run) for name, run in sides.items()}
        write(
            engine,
            {"benchmark": "null_text_profile", "steps": given.steps, "milliseconds": spent},
        )
        return
    found: dict[str, Tensor] = {}
    for name, run in sides.items():  # the warm-up: its times are not kept
        found[name] = run()
    other = next(name for name in sides if name != "ours")
    decibels = {name: latents_db(engine, scenes, each, given.steps) for name, each in found.items()}
    if decibels["ours"] < decibels[other] - FEWER:
        raise SystemExit(f"fewer decibels in latents, no time is reported: {decibels}")
    pairs = [[seconds(run) for run in sides.values()] for _ in range(given.pairs)]
    wall, cpu = ([[side[kind] for side in pair] for pair in pairs] for kind in (0, 1))
    record = {
        "benchmark": "null_text_speed",
        "method": given.method,
        "options": asdict(options_of(given)),
        "against": other,
        "steps": given.steps,
        "images": given.images,
        "latents_db": decibels,
        "seconds": dict(zip(sides, map(statistics.median, zip(*wall, strict=True)), strict=True)),
        "ratio": statistics.median(pair[1] / pair[0] for pair in wall),
        "cpu_ratio": statistics.median(pair[1] / pair[0] for pair in cpu),
        "samples": {"wall": wall, "cpu": cpu},
    }
    write(engine, {**record, "compiled": given.compile})


def write(engine: Engine, record: dict[str, Any]) -> None:
    """Append a row with where it was measured, and print it."""
    model, device = engine.model, engine.model.device
    row = {
        **record,
        "model": model.name,
        "fingerprint": model.fingerprint,
        "environment": environment(device, ["python", *sys.argv]),
    }
    folder = ROOT / "results" / device.type
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "null_text_speed.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row))


def passes(
    engine: Engine, denoiser: Denoiser, scenes: Scenes, given: argparse.Namespace
) -> dict[str, Any]:
    """CPU milliseconds of one forward pass and one gradient, of one row, of two and of eight:
    what asking the prompt's row and the null's in one batch could save.
    """
    level = engine.model.levels.schedule(given.steps).levels[given.steps // 2]

    def forward(rows: int) -> Denoise:
        index = torch.zeros(rows, dtype=torch.int64)
        return Denoise.at(scenes.latents[index], level, scenes.null.select(index))

    def gradient(rows: int) -> NoiseGradient:
        asked = forward(rows)
        return NoiseGradient(
            asked.latents, asked.timesteps, asked.alpha_bars, asked.conditioning,
            scale=torch.ones(rows), offset=asked.latents,
        )  # fmt: skip

    queries: dict[str, Query] = {}
    for rows in (1, 2, 8):
        queries |= {f"forward of {rows}": forward(rows), f"gradient of {rows}": gradient(rows)}
    samples: dict[str, list[float]] = {name: [] for name in queries}
    with torch.no_grad():
        for repeat in range(10 * given.pairs + 1):
            for name, query in queries.items():
                taken = seconds(partial(denoiser.answer, query))[1]
                if repeat:
                    samples[name].append(1000 * taken)
    middle = {name: statistics.median(taken) for name, taken in samples.items()}
    return {
        "milliseconds": middle,
        "two_rows_for_two_passes": middle["forward of 2"] / (2 * middle["forward of 1"]),
        "samples": samples,
        "compiled": given.compile,
    }


def ours(engine: Engine, denoiser: Denoiser, scenes: Scenes, given: argparse.Namespace) -> Run:
    """All images as one batch."""
    method, options = method_named(given.method), options_of(given)
    schedule = engine.model.levels.schedule(given.steps)
    batch = (scenes.latents, scenes.conditioning, scenes.null)

    def run() -> Tensor:
        inverted = drive(method.invert(schedule, *batch, options), denoiser)
        return inverted.stored["null_embeddings"]

    return run


def one_by_one(
    engine: Engine, denoiser: Denoiser, scenes: Scenes, given: argparse.Namespace
) -> Run:
    """The same method, one image after the other."""
    method, options = method_named(given.method), options_of(given)
    schedule = engine.model.levels.schedule(given.steps)

    def run() -> Tensor:
        found = []
        for place in range(given.images):
            index = torch.tensor([place])
            batch = (scenes.latents[index], *(c.select(index) for c in _conditionings(scenes)))
            inverted = drive(method.invert(schedule, *batch, options), denoiser)
            found.append(inverted.stored["null_embeddings"])
        return torch.cat(found)

    return run


def plain(
    engine: Engine, scenes: Scenes, given: argparse.Namespace, unet: nn.Module | None = None
) -> Run:
    """The transcription, one image after the other, on a network that makes attention maps."""
    unet = unet or explicit_copy(engine.model.unet.unet)
    schedule = make_schedule(asdict(engine.model.levels.config), given.steps)
    enough = -1.0 if given.no_early_stop else 1e-5

    def run() -> Tensor:
        found = []
        for place in range(given.images):
            index = torch.tensor([place])
            cond, null = (c.select(index).hidden_states for c in _conditionings(scenes))
            nulls = null_text_inversion(
                unet, schedule, scenes.latents[index], cond, null,
                inner_steps=given.inner_steps, guidance_scale=GUIDANCE, early_stop_epsilon=enough,
            ).nulls  # fmt: skip
            found.append(torch.stack(nulls, dim=1))
        return torch.cat(found)

    return run


def _conditionings(scenes: Scenes) -> tuple[Conditioning, Conditioning]:
    return scenes.conditioning, scenes.null


def compiled(engine: Engine) -> Denoiser:
    """The same weights through `torch.compile`, as `Engine.load(compile=True)` runs them."""
    from pivotal.runtime.compiled_denoiser import CompiledDenoiser
    from pivotal.runtime.compiled_unet import CompileOptions

    model = engine.model
    eager = TorchDenoiser(model.unet, model.levels.config.prediction_type)
    return CompiledDenoiser(eager, CompileOptions())


def options_of(given: argparse.Namespace) -> Any:
    """The method's, and for Adam how many updates and whether they stop early."""
    chosen: dict[str, Any] = {"guidance_scale": GUIDANCE}
    if given.method == "null-text":
        chosen["inner_steps"] = given.inner_steps
        if given.no_early_stop:
            chosen |= {"early_stop": -1.0, "early_stop_growth": 0.0}
    for pair in given.set:
        name, _, value = pair.partition("=")
        chosen[name] = value
    return method_named(given.method).options_from(chosen)


def latents_db(engine: Engine, scenes: Scenes, embeddings: Tensor, steps: int) -> float:
    """-10 log10 of the mean squared difference of the latents that come back, mean over images."""
    schedule, conditionings = engine.model.levels.schedule(steps), _conditionings(scenes)
    noise = drive(
        ddim.invert(schedule, scenes.latents, *conditionings, ddim.DDIMOptions()), engine.denoiser
    ).noise
    inverted = Inverted(noise, {"null_embeddings": embeddings})
    back = drive(
        null_text.replay(schedule, inverted, *conditionings, GUIDANCE, NoEdit()), engine.denoiser
    )
    squares = (back - scenes.latents).double().square().mean(dim=(1, 2, 3))
    return float((-10 * squares.log10()).mean())


def shares(run: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of CPU by kind of operation, self time, as torch's profiler counts them."""
    kinds = {"conv": 0.0, "attention": 0.0, "matmul": 0.0, "norm": 0.0, "rest": 0.0}
    words = {
        "conv": ("conv",),
        "attention": ("attention", "softmax", "bmm"),
        "matmul": ("aten::mm", "addmm"),
        "norm": ("norm",),
    }
    with torch.profiler.profile() as profile:
        run()
    for event in profile.key_averages():
        name = event.key.lower()
        kind = next((k for k, parts in words.items() if any(p in name for p in parts)), "rest")
        kinds[kind] += event.self_cpu_time_total / 1000
    return {kind: round(time, 1) for kind, time in kinds.items()}


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Of one call: by the clock, and of this process's CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--method", default="null-text")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--against", default="plain", choices=["plain", "one-by-one"])
    parser.add_argument("--compile", action="store_true", help="ours through torch.compile")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--inner-steps", type=int, default=10)
    parser.add_argument("--no-early-stop", action="store_true")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--passes", action="store_true", help="time single passes instead")
    parser.add_argument("--profile", action="store_true", help="where each spends its time instead")
    return parser.parse_args()


if __name__ == "__main__":
    main()
