"""The harness: prepares cases, checks their results, has them timed, makes rows."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

import torch

from pivotal.bench.cases import Case
from pivotal.bench.disturbance import Sample, disturbance_of, undisturbed
from pivotal.bench.environment import environment, gpu_state
from pivotal.bench.intervals import noise_of, paired_ratio_interval, quantiles, run_interval
from pivotal.bench.limits import Ceilings, count
from pivotal.bench.memory import peak_bytes
from pivotal.bench.rounds import PRODUCT, Effort, Listener, Running, said, time_in_rounds
from pivotal.bench.rows import SCHEMA
from pivotal.bench.timing import Stopwatch

logger = logging.getLogger(__name__)


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
        running: list[Running] = []
        for case in group:
            listener(f"{case.suite}: {case.name}", 0, effort.rounds)
            ready = _ready(case, stopwatch, _dtype(case, dtype))
            if isinstance(ready, Running):
                running.append(ready)
            else:
                yield {**common, **_named(case), **ready}
        if running:
            ceilings = time_in_rounds(running, stopwatch, effort, listener)
            after = {"gpu_after": gpu_state(device)} if device.type == "cuda" else {}
            for each in running:
                yield {
                    **common,
                    **after,
                    **_named(each.case),
                    **_timed(each, *ceilings[each.dtype]),
                }


def _named(case: Case) -> dict[str, Any]:
    return {
        "suite": case.suite,
        "case": case.name,
        "settings": dict(case.settings),
        "group": case.group,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _ready(case: Case, stopwatch: Stopwatch, dtype: torch.dtype) -> Running | dict[str, Any]:
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
        if prepared.counted:
            facts["peak_bytes"] = peak_bytes(prepared.run, stopwatch.device)
        work = None
        if prepared.eager is not None:
            prepared.eager()  # a first call does more: an engine probes its layers
            work = count(prepared.eager)
        elif prepared.counted:
            work = count(prepared.run)
    except Exception as error:  # a failed case is a row, not the end of the run
        logger.info("%s: %s fails", case.suite, case.name, exc_info=True)
        return {"status": "failed", "error": said(error)}
    facts["images"] = prepared.images
    return Running(case, prepared, facts, work, dtype)


def _dtype(case: Case, otherwise: torch.dtype) -> torch.dtype:
    """Of the products that a case is made of."""
    found = getattr(torch, str(case.settings.get("dtype", "")), otherwise)
    return found if isinstance(found, torch.dtype) else otherwise


def _timed(
    each: Running, ceilings: Ceilings, ceiling_samples: Mapping[str, list[Sample]]
) -> dict[str, Any]:
    """The end of a timed case's row, or of one that failed in a round. Seconds are a call's; a
    picture's are those over `images`.
    """
    if each.error is not None:
        return {"status": "failed", "error": each.error}
    samples = undisturbed(each.samples)
    interval = run_interval(samples)
    row: dict[str, Any] = {
        "status": "timed",
        **each.facts,
        "seconds": {**quantiles(samples), "low": interval.low, "high": interval.high},
        "seconds_per_image": interval.middle / each.prepared.images,
        "samples": samples,
        "disturbed": [sample.seconds for sample in each.samples if sample.disturbed],
        "noisy": disturbance_of(each.samples) or noise_of(samples),
        "ceilings": {
            "flops_per_second": ceilings.flops_per_second,
            "bytes_per_second": ceilings.bytes_per_second,
            "samples": {name: undisturbed(each) for name, each in ceiling_samples.items()},
        },
    }
    if each.prepared.served is not None:
        row["served"] = dict(each.prepared.served(len(each.samples)))
    # How fast the machine was meanwhile: seconds in units of the product beside which they ran.
    products = [sample.seconds for sample in ceiling_samples[PRODUCT]]
    in_products = paired_ratio_interval(products, [sample.seconds for sample in each.samples])
    row["in_products"] = {
        "p50": in_products.middle, "low": in_products.low, "high": in_products.high
    }  # fmt: skip
    if each.work is not None:
        row |= {
            "flops": each.work.flops,
            "least_bytes": each.work.least_bytes,
            "flops_per_second": each.work.flops / interval.middle,
            "least_seconds": ceilings.least_seconds(each.work),
            "percent_of_roofline": 100 * ceilings.least_seconds(each.work) / interval.middle,
        }
        if each.prepared.eager is None:  # what eager operations move, a fused one need not
            row |= {
                "moved_bytes": each.work.moved_bytes,
                "moved_bytes_per_second": each.work.moved_bytes / interval.middle,
            }
    return row
