"""N submitted calls at once against the same N calls one after another: images a second, latency.

    python benchmarks/concurrency.py [--model shapes] [--steps 20] [--calls 1 2 4 8] [--pairs 5]
        [--work edit invert mixed] [--rows 16] [--threads 1]

All N calls are there at the start. The latency of a call is the time until it has ended, so of the
sequential ones the last waits for all. The two ways are timed in turn, after one unrecorded pair,
whose results must agree or nothing is reported. Appends a JSON line for each kind of work and N to
benchmarks/results/<device>/concurrency.jsonl and prints it. `pivotal bench --suite concurrency`
times a few of these among its cases; this gives the ratio of pairs, and any number of calls.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

import pivotal
from pivotal.bench.environment import environment
from pivotal.bench.rows import append
from pivotal.bench.suites.concurrency import (
    WORK,
    Call,
    Run,
    at_once,
    difference,
    figures,
    made_calls,
    one_after_another,
)
from pivotal.bench.timing import Stopwatch

ROOT = Path(__file__).resolve().parent


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
        for name in given.work:
            calls = made_calls(engine, name, max(given.calls), given.steps)
            for count in given.calls:
                report(given, name, compared(engine, calls[:count], given.pairs))


def compared(engine: pivotal.Engine, calls: list[Call], pairs: int) -> dict[str, Any]:
    """Raises WrongResultError where the two ways' results differ."""
    distance = difference(one_after_another(engine, calls), at_once(engine, calls))
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
