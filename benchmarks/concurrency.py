"""N submitted calls at once against the same N calls one after another: images a second, latency.

    python benchmarks/concurrency.py [--model shapes] [--steps 20] [--calls 1 2 4 8] [--pairs 5]
        [--work edit invert mixed] [--rows 16] [--threads 1]

All N calls are there at the start. The latency of a call is the time until it has ended, so of the
sequential ones the last waits for all. The two ways are timed in turn, after one unrecorded pair,
whose results must agree or nothing is reported. Appends a JSON line for each kind of work and N to
benchmarks/results/<device>/concurrency.jsonl and prints it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

import pivotal
from pivotal.bench.environment import environment
from pivotal.bench.rows import append
from pivotal.bench.timing import Stopwatch

ROOT = Path(__file__).resolve().parent

PROMPT = "a red star on a gray background"
TARGETS = ("a yellow star on a gray background", "a red circle on a gray background")
TOLERANCE = 0.01  # of latents, whose standard deviation is about 1

Call = partial[Any]  # an unbound method of the engine, and its arguments


class Run(NamedTuple):
    """One way to serve N calls. Seconds; latencies in the order of the calls."""

    results: list[Any]
    seconds: float
    latencies: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--calls", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--rows", type=int, default=pivotal.Serving().shared_rows)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    serving = pivotal.Serving(shared_rows=given.rows)
    with pivotal.Engine.load(
        given.model, device=given.device, dtype=given.dtype, serving=serving
    ) as engine:
        pictures = made_pictures(max(given.calls), engine.model.default_size)
        inversions = engine.invert_many(
            pictures, PROMPT, method="ddim", num_inference_steps=given.steps
        )
        for name in given.work:
            calls = WORK[name](engine, pictures, inversions, given.steps)
            for count in given.calls:
                report(given, name, compared(engine, calls[:count], given.pairs))


def made_pictures(count: int, size: tuple[int, int]) -> list[np.ndarray[Any, Any]]:
    """The bundled scene, moved aside by a different way each."""
    path = Path(pivotal.__file__).parent / "bundled/pictures/scene.png"
    with Image.open(path) as scene:
        pixels = np.asarray(scene.convert("RGB").resize(size[::-1]))
    return [np.roll(pixels, 2 * place, axis=1) for place in range(count)]


def edits(engine: pivotal.Engine, pictures: Any, inversions: Any, steps: int) -> list[Call]:
    return [
        partial(engine.edit, inversion, TARGETS[place % 2])
        for place, inversion in enumerate(inversions)
    ]


def inverting(engine: pivotal.Engine, pictures: Any, inversions: Any, steps: int) -> list[Call]:
    return [
        partial(engine.invert, picture, PROMPT, method="ddim", num_inference_steps=steps)
        for picture in pictures
    ]


def mixed(*made_of: Any) -> list[Call]:
    """An edit and an inversion in turn."""
    pairs = zip(edits(*made_of), inverting(*made_of), strict=True)
    return [pair[place % 2] for place, pair in enumerate(pairs)]


WORK: dict[str, Callable[..., list[Call]]] = {"edit": edits, "invert": inverting, "mixed": mixed}


def one_after_another(engine: pivotal.Engine, calls: list[Call]) -> Run:
    start, results, latencies = time.perf_counter(), [], []
    for call in calls:
        results.append(call())
        latencies.append(time.perf_counter() - start)
    return Run(results, latencies[-1], latencies)


def at_once(engine: pivotal.Engine, calls: list[Call]) -> Run:
    ended: dict[Future[Any], float] = {}
    start = time.perf_counter()
    futures = []
    for call in calls:
        futures.append(engine.submit(call))
        futures[-1].add_done_callback(lambda future: ended.update({future: time.perf_counter()}))
    wait(futures)
    results = [future.result() for future in futures]
    latencies = [ended[future] - start for future in futures]
    return Run(results, max(latencies), latencies)


def compared(engine: pivotal.Engine, calls: list[Call], pairs: int) -> dict[str, Any]:
    first, second = one_after_another(engine, calls), at_once(engine, calls)
    distance = max(
        float((latents_of(a) - latents_of(b)).abs().max())
        for a, b in zip(first.results, second.results, strict=True)
    )
    if not distance <= TOLERANCE:
        raise SystemExit(f"results differ by {distance}; {TOLERANCE} is allowed")
    ways = {"sequential": one_after_another, "concurrent": at_once}
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for pair in range(pairs):
        for name in list(ways) if pair % 2 else reversed(ways):
            runs[name].append(ways[name](engine, calls))
    speedups = [
        before.seconds / after.seconds
        for before, after in zip(runs["sequential"], runs["concurrent"], strict=True)
    ]
    return {
        "calls": len(calls),
        "pairs": pairs,
        **{name: figures(each) for name, each in runs.items()},
        "times_as_fast": statistics.median(speedups),
        "largest_difference": distance,
        "samples": {name: [run.seconds for run in each] for name, each in runs.items()},
    }


def latents_of(result: Any) -> torch.Tensor:
    made = result.inverted.noise if isinstance(result, pivotal.Inversion) else result.latents
    return made.float().cpu()


def figures(runs: list[Run]) -> dict[str, float]:
    """Medians over runs; latencies of all calls of all runs."""
    latencies = [latency for run in runs for latency in run.latencies]
    return {
        "images_per_second": statistics.median(len(run.latencies) / run.seconds for run in runs),
        "latency_p50": float(np.percentile(latencies, 50)),
        "latency_p95": float(np.percentile(latencies, 95)),
    }


def report(given: argparse.Namespace, work: str, measured: dict[str, Any]) -> None:
    settings = ("model", "dtype", "steps", "rows", "threads")
    row = {
        "benchmark": "concurrency",
        "work": work,
        **{name: getattr(given, name) for name in settings},
        **measured,
        "environment": environment(
            torch.device(given.device), ["python", "benchmarks/concurrency.py", *sys.argv[1:]]
        ),
    }
    path = ROOT / "results" / Stopwatch(torch.device(given.device)).name / "concurrency.jsonl"
    append(path, row)
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
