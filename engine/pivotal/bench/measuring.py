"""The harness: prepares cases, checks their results, times them in turns, makes rows."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch

from pivotal.bench.cases import Case, Prepared
from pivotal.bench.environment import environment, gpu_state
from pivotal.bench.intervals import (
    WIDEST,
    median_interval,
    noise_of,
    paired_ratio_interval,
    quantiles,
)
from pivotal.bench.limits import Ceilings, Counted, count
from pivotal.bench.memory import peak_bytes
from pivotal.bench.rows import SCHEMA
from pivotal.bench.timing import Stopwatch, large_copy, large_product

logger = logging.getLogger(__name__)

Listener = Callable[[str, int, int], None]
"""Told before each piece of work: what, how many rounds are done, of how many at most."""

PRODUCT, COPY = "a large matrix product", "a large copy"


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    rounds: the most samples of a case. fewest: the least, whatever it takes; under 6 a case is
    called too noisy. seconds: of a case, after which no further round is begun. Sampling ends early
    once every interval is narrow.
    """

    rounds: int = 30
    fewest: int = 3
    seconds: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.fewest <= self.rounds or self.seconds < 0:
            raise ValueError(
                f"rounds={self.rounds}, fewest={self.fewest}, seconds={self.seconds}; "
                "1 <= fewest <= rounds and 0 <= seconds are expected"
            )


@dataclass
class _Running:
    """A case that passed its check, on its way through the rounds."""

    case: Case
    prepared: Prepared
    facts: dict[str, Any]
    work: Counted | None
    samples: list[float] = field(default_factory=list)


def measure(
    cases: Iterable[Case],
    device: torch.device,
    effort: Effort,
    *,
    dtype: torch.dtype = torch.float32,
    command: list[str] | None = None,
    listener: Listener = lambda what, done, most: None,
) -> Iterator[dict[str, Any]]:
    """A row for every case, as its group ends.

    A case that can't be prepared, or whose result fails its check, is not timed: its row has the
    error. dtype: of the matrix product that is the machine's ceiling, for cases whose settings name
    none.
    """
    stopwatch, started = Stopwatch(device), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    common = {
        "schema": SCHEMA,
        "run": started,
        "device": stopwatch.name,
        "environment": environment(device, command),
    }
    for _, group in groupby(cases, key=lambda case: (case.suite, case.group)):
        running: list[_Running] = []
        for case in group:
            listener(f"{case.suite}: {case.name}", 0, effort.rounds)
            ready = _ready(case, stopwatch)
            if isinstance(ready, _Running):
                running.append(ready)
            else:
                yield {**common, **_named(case), **ready}
        if running:
            ceilings = _rounds(running, stopwatch, effort, dtype, listener)
            after = {"gpu_after": gpu_state(device)} if device.type == "cuda" else {}
            for each in running:
                yield {
                    **common,
                    **after,
                    **_named(each.case),
                    **_timed(each, *ceilings[_dtype(each.case, dtype)]),
                }


def _named(case: Case) -> dict[str, Any]:
    return {
        "suite": case.suite,
        "case": case.name,
        "settings": dict(case.settings),
        "group": case.group,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _ready(case: Case, stopwatch: Stopwatch) -> _Running | dict[str, Any]:
    """Prepared, run once, checked, counted; or a row's end that says why not."""
    if case.needs is not None:
        return {"status": "not measured", "reason": case.needs}
    try:
        prepared = case.prepare()
        facts: dict[str, Any] = {}
        if prepared.compile is not None:
            facts["compile_seconds"] = stopwatch.seconds(prepared.compile)
        result: list[Any] = []
        facts["first_seconds"] = stopwatch.seconds(lambda: result.append(prepared.run()))
        facts["check"] = dict(prepared.check(result.pop()))
        work = None
        if prepared.counted:
            facts["peak_bytes"] = peak_bytes(prepared.run, stopwatch.device)
            work = count(prepared.run)
    except Exception as error:  # a failed case is a row, not the end of the run
        logger.info("%s: %s fails", case.suite, case.name, exc_info=True)
        return {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    facts["images"] = prepared.images
    return _Running(case, prepared, facts, work)


def _rounds(
    running: list[_Running],
    stopwatch: Stopwatch,
    effort: Effort,
    dtype: torch.dtype,
    listener: Listener,
) -> dict[torch.dtype, tuple[Ceilings, dict[str, list[float]]]]:
    """Time all in rounds, in random order, the ceilings among them, after a round to warm up.

    Rounds spread each case over the whole time, so that a machine whose speed drifts slows all.
    Returns the ceilings and their samples for each dtype that the cases have.
    """
    needed = dict.fromkeys(_dtype(each.case, dtype) for each in running)
    products = {each: large_product(stopwatch.device, each) for each in needed}
    product_samples: dict[torch.dtype, list[float]] = {each: [] for each in needed}
    copy, moved = large_copy(stopwatch.device)
    copy_samples: list[float] = []
    calls: list[tuple[Callable[[], object], list[float]]] = [
        *((products[each][0], product_samples[each]) for each in needed),
        (copy, copy_samples),
        *((each.prepared.run, each.samples) for each in running),
    ]
    order, deadline = random.Random(effort.seed), time.monotonic() + effort.seconds * len(running)
    for turn in range(-1, effort.rounds):
        listener(running[0].case.suite, max(turn, 0), effort.rounds)
        for run, samples in order.sample(calls, len(calls)):
            seconds = stopwatch.seconds(run)
            if turn >= 0:
                samples.append(seconds)
        if turn + 1 >= effort.fewest and (
            time.monotonic() > deadline or all(_settled(each.samples) for each in running)
        ):
            break
    return {
        each: (
            Ceilings(products[each][1] / min(samples), moved / min(copy_samples)),
            {PRODUCT: samples, COPY: copy_samples},
        )
        for each, samples in product_samples.items()
    }


def _dtype(case: Case, otherwise: torch.dtype) -> torch.dtype:
    """Of the products that a case is made of."""
    found = getattr(torch, str(case.settings.get("dtype", "")), otherwise)
    return found if isinstance(found, torch.dtype) else otherwise


def _settled(samples: list[float]) -> bool:
    """Half as wide as is allowed, so that a second run's interval has room to overlap."""
    return noise_of(samples) is None and median_interval(samples).half_width <= WIDEST / 2


def _timed(
    each: _Running, ceilings: Ceilings, ceiling_samples: Mapping[str, list[float]]
) -> dict[str, Any]:
    """The end of a timed case's row. Seconds are a call's; a picture's are those over `images`."""
    interval = median_interval(each.samples)
    row: dict[str, Any] = {
        "status": "timed",
        **each.facts,
        "seconds": {**quantiles(each.samples), "low": interval.low, "high": interval.high},
        "seconds_per_image": interval.middle / each.prepared.images,
        "samples": each.samples,
        "noisy": noise_of(each.samples),
        "ceilings": {
            "flops_per_second": ceilings.flops_per_second,
            "bytes_per_second": ceilings.bytes_per_second,
            "samples": dict(ceiling_samples),
        },
    }
    if each.prepared.served is not None:
        row["served"] = dict(each.prepared.served(len(each.samples)))
    # How fast the machine was meanwhile: seconds in units of the product beside which they ran.
    in_products = paired_ratio_interval(ceiling_samples[PRODUCT], each.samples)
    row["in_products"] = {
        "p50": in_products.middle, "low": in_products.low, "high": in_products.high
    }  # fmt: skip
    if each.work is not None:
        row |= {
            "flops": each.work.flops,
            "moved_bytes": each.work.moved_bytes,
            "least_bytes": each.work.least_bytes,
            "flops_per_second": each.work.flops / interval.middle,
            "moved_bytes_per_second": each.work.moved_bytes / interval.middle,
            "least_seconds": ceilings.least_seconds(each.work),
            "percent_of_roofline": 100 * ceilings.least_seconds(each.work) / interval.middle,
        }
    return row
