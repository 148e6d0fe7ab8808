"""Every implementation of routed attention, timed over the cross-attention of SD 1.5, 2.1 and SDXL.

    python benchmarks/kernels/routed_attention.py [--device cuda] [--dtype float16] [--samples 50]
        [--impl sdpa --impl triton] [--dry-run]

Four rows, as one Prompt-to-Prompt edit under guidance asks: two unconditional, the source, and a
target that borrows from it. All implementations of a case take turns in random order, so that a
device whose speed drifts slows them alike; before each turn on a GPU its L2 is overwritten. Nothing
is timed that fails the oracle, and what fails is written with its error. Appends JSON lines with
all samples to benchmarks/results/<device>/routed_attention.jsonl. --dry-run shrinks the shapes to
try the whole way out on a CPU, and prints without writing.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pivotal.bench.environment import environment
from pivotal.bench.intervals import quantiles
from pivotal.bench.timing import Stopwatch, bandwidth
from pivotal_kernels.routed_attention import BACKENDS, Impl, routed_attention
from pivotal_kernels.testing import RoutedInputs, assert_as_exact, routed_attention_inputs

ROOT = Path(__file__).resolve().parents[1]
PLAIN = "plain attention, no routes"


@dataclass(frozen=True)
class Case:
    """One layer's shape. Layers that report word maps have columns."""

    model: str
    heads: int
    queries: int
    width: int
    columns: int | None = None
    rows: int = 4
    length: int = 77

    def shrunk(self) -> Case:
        """Small enough for a try-out on a CPU."""
        return replace(self, queries=min(self.queries, 64), heads=2)


CASES = (
    Case("sd15 at 512", 8, 4096, 40),
    Case("sd15 at 512", 8, 1024, 80),
    Case("sd15 at 512", 8, 256, 160, columns=5),
    Case("sd15 at 512", 8, 64, 160),
    Case("sd21 at 768", 5, 9216, 64),
    Case("sd21 at 768", 10, 2304, 64),
    Case("sd21 at 768", 20, 576, 64, columns=5),
    Case("sd21 at 768", 20, 144, 64),
    Case("sdxl at 1024", 10, 4096, 64),
    Case("sdxl at 1024", 20, 1024, 64, columns=5),
)


def main(arguments: list[str], out: TextIO) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--impl", action="append", choices=list(BACKENDS))
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args(arguments)
    impls = given.impl or [name for name in BACKENDS if name != "xformers"]
    stopwatch = Stopwatch(torch.device(given.device))
    common = {
        "benchmark": "routed_attention",
        "dtype": given.dtype,
        "copy_bytes_per_second": bandwidth(stopwatch),
        "environment": environment(stopwatch.device, [Path(__file__).name, *arguments]),
    }
    for case in CASES:
        measured = case.shrunk() if given.dry_run else case
        samples = 3 if given.dry_run else given.samples
        for row in measure(measured, impls, getattr(torch, given.dtype), stopwatch, samples):
            line = json.dumps({**common, "case": asdict(measured), **row})
            if not given.dry_run:
                folder = given.results / stopwatch.name
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / "routed_attention.jsonl").open("a") as file:
                    file.write(line + "\n")
            out.write(line + "\n")
            out.flush()


def measure(
    case: Case, impls: list[str], dtype: torch.dtype, stopwatch: Stopwatch, samples: int
) -> list[dict[str, Any]]:
    """A record for each implementation: times, or the error that kept it from being timed."""
    inputs, gate = edit_inputs(case, dtype, stopwatch.device)
    runs: dict[str, Callable[[], object]] = {
        PLAIN: lambda: scaled_dot_product_attention(inputs.query, inputs.key, inputs.value)
    }
    first_seconds = {}
    rows: list[dict[str, Any]] = []
    for impl in impls:
        run = calling(impl, inputs, gate)
        try:
            first_seconds[impl] = stopwatch.seconds(run)  # Triton compiles here
            check(impl, inputs, gate)
        except Exception as error:  # a failed case is a result
            rows.append({"impl": impl, "error": f"{type(error).__name__}: {error}"})
            continue
        runs[impl] = run
    times = take_turns(runs, stopwatch, samples)
    least = least_bytes(case, dtype)
    for impl, seconds in times.items():
        rows.append(
            {
                "impl": impl,
                "seconds": quantiles(seconds),
                "samples": seconds,
                "first_seconds": first_seconds.get(impl),
                "least_bytes": least,
                "bytes_per_second": least / quantiles(seconds)["p50"],
                "ratio_to_plain": quantiles(
                    [one / plain for one, plain in zip(seconds, times[PLAIN], strict=True)]
                ),
            }
        )
    return rows


def take_turns(
    runs: dict[str, Callable[[], object]], stopwatch: Stopwatch, samples: int
) -> dict[str, list[float]]:
    """Seconds of each, in rounds of all in random order; two rounds first to warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = random.Random(0)
    for turn in range(samples + 2):
        for name in order.sample(list(runs), len(runs)):
            seconds = stopwatch.seconds(runs[name])
            if turn >= 2:
                times[name].append(seconds)
    return times


def calling(impl: str, inputs: RoutedInputs, gate: Tensor) -> Callable[[], object]:
    return lambda: routed_attention(**inputs.arguments(), gate=gate, impl=cast(Impl, impl))


def edit_inputs(
    case: Case, dtype: torch.dtype, device: torch.device
) -> tuple[RoutedInputs, Tensor]:
    """Fresh inputs laid out as projections leave them, and the gate: only the target is open."""
    made = routed_attention_inputs(
        torch.Generator().manual_seed(case.queries),
        rows=case.rows,
        heads=case.heads,
        queries=case.queries,
        length=case.length,
        width=case.width,
        columns=case.columns,
        dtype=dtype,
    ).strided()
    donors = torch.arange(case.rows)
    donors[-1] = case.rows - 2
    gate = torch.zeros(case.rows)
    gate[-1] = 1
    edit = replace(made, donors=donors).mapped(lambda tensor: tensor.to(device))
    return edit, gate.to(device)


def check(impl: str, inputs: RoutedInputs, gate: Tensor) -> None:
    """The oracle of the tests. Raises AssertionError."""
    chosen = cast(Impl, impl)
    actual = routed_attention(**inputs.arguments(), gate=gate, impl=chosen)
    plain = routed_attention(**inputs.arguments(), gate=gate, impl="reference")
    exact = routed_attention(**inputs.double().arguments(), gate=gate.double(), impl="reference")
    assert_as_exact(actual.out, plain.out, exact.out, "out")
    if actual.word_maps is not None and plain.word_maps is not None and exact.word_maps is not None:
        assert_as_exact(actual.word_maps, plain.word_maps, exact.word_maps, "word_maps")


def least_bytes(case: Case, dtype: torch.dtype) -> int:
    """What must move: queries, keys, values and outputs once each, mixer and word maps likewise.

    The donor's queries are among the batch's own.
    """
    each = torch.finfo(dtype).bits // 8
    attention = 2 * case.heads * case.width * (case.queries + case.length) * each
    routes = case.length * case.length * 4 + case.length * 4
    words = 0 if case.columns is None else case.columns * (case.length * 4 + case.queries * each)
    return case.rows * (attention + words) + routes


if __name__ == "__main__":
    main(sys.argv[1:], sys.stdout)
