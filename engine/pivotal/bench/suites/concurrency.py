"""N submitted calls at once beside the same N calls one after another: images a second, latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from pivotal.bench.cases import Case, Prepared
from pivotal.bench.errors import WrongResultError
from pivotal.bench.suites.plan import PROMPT, TARGETS, Plan, picture
from pivotal.engine import Engine
from pivotal.images import Pixels, fit, read_image
from pivotal.inversion_file import Inversion

SUITE = "concurrency"
METHOD = "ddim"
TOLERANCE = 0.01  # of latents, whose standard deviation is about 1

Call = partial[Any]  # an unbound method of the engine, and its arguments


class Run(NamedTuple):
    """One way to serve N calls. Seconds; latencies in the order of the calls, all of which were
    there at the start: of those in a row the last waits for all.
    """

    results: list[Any]
    seconds: float
    latencies: list[float]


def one_after_another(engine: Engine, calls: Sequence[Call]) -> Run:
    start, results, latencies = time.perf_counter(), [], []
    for call in calls:
        results.append(call())
        latencies.append(time.perf_counter() - start)
    return Run(results, latencies[-1], latencies)


def at_once(engine: Engine, calls: Sequence[Call]) -> Run:
    ended: dict[Future[Any], float] = {}
    start = time.perf_counter()
    futures: list[Future[Any]] = []
    for call in calls:
        futures.append(engine.submit(call))
        futures[-1].add_done_callback(lambda future: ended.update({future: time.perf_counter()}))
    wait(futures)
    results = [future.result() for future in futures]
    latencies = [ended[future] - start for future in futures]
    return Run(results, max(latencies), latencies)


WAYS: Mapping[str, Callable[[Engine, Sequence[Call]], Run]] = {
    "in a row": one_after_another,
    "at once": at_once,
}


def cases(plan: Plan) -> Iterator[Case]:
    """Both ways in one group, so that they take turns."""
    for work in ("mixed",) if plan.quick else WORK:
        for count in (4,) if plan.quick else (1, 2, 4, 8):
            for way in WAYS:
                settings = {
                    "model": plan.model, "dtype": plan.dtype, "steps": plan.steps,
                    "work": work, "calls": count, "way": way, "method": METHOD,
                }  # fmt: skip
                name = f"{work}, {count} calls {way}, {plan.steps} steps"
                group = f"{plan.model} {work} {count}"
                yield Case(SUITE, name, _preparing(plan, work, count, way), settings, group)


def _preparing(plan: Plan, work: str, count: int, way: str) -> Callable[[], Prepared]:
    def prepare() -> Prepared:
        engine, runs = plan.engine, list[Run]()
        calls = made_calls(engine, work, count, plan.steps)

        def run() -> Run:
            runs.append(WAYS[way](engine, calls))
            return runs[-1]

        def check(found: Run) -> Mapping[str, Any]:
            return {"largest_difference": difference(found, one_after_another(engine, calls))}

        return Prepared(
            run, check, images=count, counted=False, served=lambda last: figures(runs[-last:])
        )

    return prepare


def made_calls(engine: Engine, work: str, count: int, steps: int) -> list[Call]:
    """`count` calls on different pictures. work: one of WORK."""
    pictures = made_pictures(count, engine.model.default_size)
    inversions = engine.invert_many(pictures, PROMPT, method=METHOD, num_inference_steps=steps)
    return WORK[work](engine, pictures, inversions, steps)


def made_pictures(count: int, size: tuple[int, int]) -> list[Pixels]:
    """The drawn scene, moved aside by a different way each."""
    pixels = fit(read_image(picture()), size).pixels
    return [np.roll(pixels, 2 * place, axis=1) for place in range(count)]


def edits(
    engine: Engine, pictures: Sequence[Pixels], inversions: Sequence[Inversion], steps: int
) -> list[Call]:
    return [
        partial(engine.edit, inversion, TARGETS[2 + place % 2])
        for place, inversion in enumerate(inversions)
    ]


def inverting(
    engine: Engine, pictures: Sequence[Pixels], inversions: Sequence[Inversion], steps: int
) -> list[Call]:
    return [
        partial(engine.invert, each, PROMPT, method=METHOD, num_inference_steps=steps)
        for each in pictures
    ]


def mixed(
    engine: Engine, pictures: Sequence[Pixels], inversions: Sequence[Inversion], steps: int
) -> list[Call]:
    """An edit and an inversion in turn."""
    made_of = (engine, pictures, inversions, steps)
    pairs = zip(edits(*made_of), inverting(*made_of), strict=True)
    return [pair[place % 2] for place, pair in enumerate(pairs)]


WORK: Mapping[str, Callable[..., list[Call]]] = {
    "edit": edits, "invert": inverting, "mixed": mixed,
}  # fmt: skip


def difference(first: Run, second: Run) -> float:
    """The largest of all results' latents. Raises WrongResultError where it is over TOLERANCE."""
    largest = max(
        float((_latents_of(a) - _latents_of(b)).abs().max())
        for a, b in zip(first.results, second.results, strict=True)
    )
    if not largest <= TOLERANCE:
        raise WrongResultError(f"results differ by {largest:.1e}; {TOLERANCE} is allowed")
    return largest


def _latents_of(result: Any) -> torch.Tensor:
    made = result.inverted.noise if isinstance(result, Inversion) else result.latents
    latents: torch.Tensor = made.float().cpu()
    return latents


def figures(runs: Sequence[Run]) -> dict[str, float]:
    """Images a second by the median run; percentiles of the latencies (s) of all calls."""
    latencies = [latency for run in runs for latency in run.latencies]
    rates = [len(run.latencies) / run.seconds for run in runs]
    p50, p95, p99 = (float(np.percentile(latencies, share)) for share in (50, 95, 99))
    return {
        "images_per_second": float(np.median(rates)),
        "latency_p50": p50,
        "latency_p95": p95,
        "latency_p99": p99,
    }
