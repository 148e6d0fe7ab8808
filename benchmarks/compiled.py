"""Compiling, measured on one device: against eager, its start, and what routes cost.

    python benchmarks/compiled.py calls [--model shapes] [--work edit] [--steps 10] [--pairs 5]
    python benchmarks/compiled.py routes [--model random:sd1] [--side 64] [--pairs 3] [--compile]
    python benchmarks/compiled.py start [--model random:sd1] [--side 8]

`calls`: DDIM inversion, null-text fitting (10 Adam steps) and a P2P edit of latents, compiled and
eager in turn; not timed unless both give the same latents, or decibels of the fit's losses.
`routes`: one UNet batch of four rows, as an edit asks it, against the same rows without routes.
`start`: seconds from a loaded network to a first answer with routes, whole and block by block, each
in a process of its own, with an empty cache and with the one that the first left.

Sides take turns, so that a machine whose speed drifts slows both. CPU seconds of the process stand
beside the clock's, which others' work lengthens; on a GPU the clock alone means something. Appends
JSON lines to benchmarks/results/<device>/compiled.jsonl and prints them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pivotal.attention_routes import AttentionRoutes
from pivotal.bench.environment import environment
from pivotal.bench.rows import append
from pivotal.bench.timing import Stopwatch
from pivotal.driver import Denoiser, drive
from pivotal.editing.edit import Edit
from pivotal.editing.prompt_to_prompt import PromptToPrompt
from pivotal.editing.routes import Layers
from pivotal.inversion import ddim, null_text
from pivotal.model.load import Model, load
from pivotal.query import Conditioning, Denoise
from pivotal.runtime.buckets import Buckets
from pivotal.runtime.compiled_denoiser import CompiledDenoiser
from pivotal.runtime.compiled_unet import CompileOptions
from pivotal.runtime.torch_denoiser import TorchDenoiser
from pivotal.sampling.ddim import sample

ROOT = Path(__file__).resolve().parent
SOURCE, TARGET = "a red circle on a gray background", "a blue circle on a gray background"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=list(MEASURES))
    parser.add_argument("--model", default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--side", type=int, default=None, help="of the latents")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--regional", action="store_true")
    parser.add_argument("--work", action="append", choices=list(WORKS), help="for calls; all")
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    given = parser.parse_args()
    for figures in MEASURES[given.what](given):
        row = {
            "benchmark": f"compiled_{given.what}",
            "model": given.model,
            "dtype": given.dtype,
            "threads": torch.get_num_threads(),
            **figures,
            "environment": environment(torch.device(given.device), ["python", *sys.argv]),
        }
        append(given.results / Stopwatch(torch.device(given.device)).name / "compiled.jsonl", row)
        print(json.dumps(row), flush=True)


def calls(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Compiled against eager: three kinds of work on latents, with the very same start."""
    given.model = given.model or "shapes"
    model = load(given.model, device=given.device, dtype=given.dtype)
    chosen = given.work or list(WORKS)
    rows_needed = {4 if name == "edit" else 1 for name in chosen}
    eager, compiled = denoisers(model, given, Buckets(tuple(sorted(rows_needed))))
    rows = []
    for name in chosen:
        work = partial(WORKS[name], model, given.steps)
        start = time.perf_counter()
        found = work(compiled)  # compiles what is missing
        first = time.perf_counter() - start
        difference = (found - work(eager)).abs().max().item()
        if not difference < 0.05:
            raise SystemExit(f"{name}: compiled and eager differ by {difference}; nothing is timed")
        graphs = len(compiled.network.graphs.seconds)
        timed = in_turn({"eager": partial(work, eager), "compiled": partial(work, compiled)}, given)
        rows.append(
            {
                "work": name,
                "steps": given.steps,
                "regional": given.regional,
                "largest_difference": difference,
                "first_seconds": first,
                "recompiles": len(compiled.network.graphs.seconds) - graphs,
                **timed,
                "speedup": ratio(timed["samples"]["eager"], timed["samples"]["compiled"]),
            }
        )
    rows[-1]["compile_seconds"] = compiled.network.graphs.seconds
    return rows


def routes(given: argparse.Namespace) -> list[dict[str, Any]]:
    """One batch of an edit under guidance, with routes and without."""
    given.model = given.model or "random:sd1"
    model = load(given.model, device=given.device, dtype=given.dtype)
    eager, compiled = denoisers(model, given, Buckets((4,)))
    denoiser = compiled if given.compile else eager
    side = given.side or 64
    plain, routed = an_edits_batch(model, side)

    def ask(query: Denoise) -> Callable[[], Tensor]:
        return lambda: drive(iter(query), denoiser).eps

    if torch.equal(ask(plain)(), ask(routed)()):
        raise SystemExit("the routes changed nothing; nothing is timed")
    timed = in_turn({"plain": ask(plain), "routed": ask(routed)}, given)
    overhead = ratio(timed["samples"]["routed"], timed["samples"]["plain"])
    return [
        {
            "compiled": given.compile,
            "regional": given.regional,
            "rows": 4,
            "latents": [side, side],
            **timed,
            "routed_over_plain": overhead,
        }
    ]


def start(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Cold starts, each in a fresh process; the second of each finds the first one's cache."""
    given.model = given.model or "random:sd1"
    if given.cache is not None:  # the process that is measured
        print(json.dumps(first_answer(given)))
        raise SystemExit
    rows = []
    for regional in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            for cached in (False, True):
                command = [sys.executable, __file__, *sys.argv[1:], "--cache", folder]
                command += ["--model", given.model] + ["--regional"] * regional
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                rows.append({"regional": regional, "cached": cached, **found})
    return rows


def first_answer(given: argparse.Namespace) -> dict[str, Any]:
    model = load(given.model, device=given.device, dtype=given.dtype)
    _, compiled = denoisers(model, given, Buckets((4,)))
    _, routed = an_edits_batch(model, given.side or 8)
    clock, cpu = time.perf_counter(), time.process_time()
    drive(iter(routed), compiled)
    return {
        "latents": [given.side or 8] * 2,
        "rows": 4,
        "first_answer_seconds": time.perf_counter() - clock,
        "first_answer_cpu_seconds": time.process_time() - cpu,
        "graphs": len(compiled.network.graphs.seconds),
    }


def denoisers(
    model: Model, given: argparse.Namespace, buckets: Buckets
) -> tuple[TorchDenoiser, CompiledDenoiser]:
    eager = TorchDenoiser(model.unet, model.levels.config.prediction_type)
    options = CompileOptions(buckets, regional=given.regional, cache=given.cache)
    return eager, CompiledDenoiser(eager, options)


def in_turn(runs: Mapping[str, Callable[[], object]], given: argparse.Namespace) -> dict[str, Any]:
    """Clock and CPU seconds of each, in turns; medians and all samples."""
    clocks: dict[str, list[float]] = {name: [] for name in runs}
    cpus: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(given.pairs):
        for name in list(runs) if turn % 2 == 0 else list(runs)[::-1]:
            synchronize(given)
            clock, cpu = time.perf_counter(), time.process_time()
            runs[name]()
            synchronize(given)
            clocks[name].append(time.perf_counter() - clock)
            cpus[name].append(time.process_time() - cpu)
    samples = cpus if given.device == "cpu" else clocks
    return {
        "seconds": {name: statistics.median(each) for name, each in clocks.items()},
        "cpu_seconds": {name: statistics.median(each) for name, each in cpus.items()},
        "samples": samples,
        "samples_are": "CPU seconds" if samples is cpus else "seconds",
    }


def ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def synchronize(given: argparse.Namespace) -> None:
    if given.device != "cpu":
        torch.cuda.synchronize()


def inverted(model: Model, steps: int, by: Denoiser) -> Tensor:
    latents, cond, null = start_of(model)
    schedule = model.levels.schedule(steps)
    return drive(ddim.invert(schedule, latents, cond, null, ddim.DDIMOptions()), by).noise


def fitted(model: Model, steps: int, by: Denoiser) -> Tensor:
    latents, cond, null = start_of(model)
    options = null_text.NullTextOptions(early_stop=-1.0, early_stop_growth=0.0)
    schedule = model.levels.schedule(steps)
    found = drive(null_text.invert(schedule, latents, cond, null, options), by)
    return -10 * found.diagnostics["losses"].log10()


def edited(model: Model, steps: int, by: Denoiser) -> Tensor:
    schedule = model.levels.schedule(steps)
    tokens = [model.text.tokens(prompt) for prompt in (SOURCE, TARGET)]
    layers = Layers(
        tuple(layer.downscale for layer in model.unet.self_layers),
        tuple(layer.downscale for layer in model.unet.cross_layers),
        model.family.self_injection_downscale,
    )
    control = PromptToPrompt(tokens[0], tokens[1:], [Edit(TARGET)], steps, layers)
    cond = encoded(model, SOURCE, TARGET)
    null = encoded(model, "", "")
    noise = latents_of(model, model.default_size[0] // model.autoencoder.scale).expand(
        2, -1, -1, -1
    )
    guidance = model.family.guidance_scale
    return drive(sample(schedule, noise, cond, lambda _: null, guidance, control), by)


def start_of(model: Model) -> tuple[Tensor, Conditioning, Conditioning]:
    side = model.default_size[0] // model.autoencoder.scale
    return 0.5 * latents_of(model, side), encoded(model, SOURCE), encoded(model, "")


def an_edits_batch(model: Model, side: int) -> tuple[Denoise, Denoise]:
    """Two unconditional rows, a source, a target that swaps a word; without routes and with."""
    cond = Conditioning.cat([encoded(model, "", ""), encoded(model, SOURCE, TARGET)])
    latents = latents_of(model, side).expand(4, -1, -1, -1).contiguous()
    level = model.levels.schedule(2).levels[-1]
    layers = Layers(
        tuple(layer.downscale for layer in model.unet.self_layers),
        tuple(layer.downscale for layer in model.unet.cross_layers),
        model.family.self_injection_downscale,
    )
    tokens = [model.text.tokens(prompt) for prompt in (SOURCE, TARGET)]
    routed = PromptToPrompt(tokens[0], tokens[1:], [Edit(TARGET)], 2, layers).routes(0)
    whole = AttentionRoutes.cat([routed.identity_like(2), routed])
    return Denoise.at(latents, level, cond), Denoise.at(latents, level, cond, whole)


def latents_of(model: Model, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (1, model.autoencoder.channels, side, side)
    return torch.randn(shape, generator=generator).to(model.device)


def encoded(model: Model, *prompts: str) -> Conditioning:
    with torch.no_grad():
        return model.text.encode(prompts).to(model.device)


WORKS: Mapping[str, Callable[[Model, int, Denoiser], Tensor]] = {
    "invert": inverted,
    "null-text": fitted,
    "edit": edited,
}
MEASURES = {"calls": calls, "routes": routes, "start": start}

if __name__ == "__main__":
    main()
