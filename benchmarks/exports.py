"""Seconds, memory and file sizes of an export to ONNX, and of TensorRT-RTX engines built from it.

    OMP_NUM_THREADS=1 python benchmarks/exports.py --model random:sd1 --side 512 --sm 89

The files go to a temporary folder (`--keep` names another); every network is compared with torch
before its row is written. Engines are for one batch size and hold each target GPU's kernels. A row
is added to benchmarks/results/cpu/exports.jsonl.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from pivotal.bench.environment import environment
from pivotal.bench.rows import append
from pivotal.model.load import Model, load
from pivotal.runtime.exported.onnx_export import export_onnx
from pivotal.runtime.exported.profile import ShapeProfile, Span
from pivotal.runtime.exported.tensorrt_api import api_of
from pivotal.runtime.exported.tensorrt_build import BuildOptions, build_engines

T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What work returns; its seconds by the clock and of CPU time."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {"clock": time.perf_counter() - clock, "cpu": time.process_time() - cpu}


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of all files that lie in a folder."""
    return {each.name: each.stat().st_size for each in sorted(folder.iterdir()) if each.is_file()}


def measured(
    model: Model, side: int, rows: Span, sm: tuple[str, ...], folder: Path
) -> dict[str, Any]:
    """Export, and build for each of `sm`. Raises BackendError for files that differ from torch."""
    onnx, engines = folder / "onnx", folder / "engines"
    onnx.mkdir()
    profile = ShapeProfile(rows, Span(side, side), Span(side, side))
    record, seconds = timed(lambda: export_onnx(model, profile, onnx))
    found: dict[str, Any] = {
        "onnx": {"seconds": seconds, "bytes": sizes(onnx), "largest_difference": record.errors}
    }
    if sm:
        engines.mkdir()
        options = BuildOptions(sm=sm, buckets=(rows.high,))
        api = api_of("tensorrt_rtx")
        _, seconds = timed(lambda: build_engines(model, onnx, engines, api, options))
        found["tensorrt_rtx"] = {
            "version": api.version,
            "seconds": seconds,
            "bytes": sizes(engines),
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # bytes, on Linux
    return {**found, "peak_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--rows", type=Span.parse, default=Span(2, 2))
    parser.add_argument("--sm", nargs="*", default=[], help="engines for these, as 89 120")
    parser.add_argument("--keep", type=Path, help="a new folder for the files")
    arguments = parser.parse_args()
    model = load(arguments.model, dtype=arguments.dtype)
    asked = (model, arguments.side, arguments.rows, tuple(arguments.sm))
    if arguments.keep is None:
        with TemporaryDirectory() as folder:
            found = measured(*asked, Path(folder))
    else:
        arguments.keep.mkdir(parents=True)
        found = measured(*asked, arguments.keep)
    settings = {
        "model": arguments.model,
        "dtype": arguments.dtype,
        "side": arguments.side,
        "rows": str(arguments.rows),
        "sm": arguments.sm,
        "shared_machine": True,
    }
    row = {
        "benchmark": "exports",
        "settings": settings,
        "environment": environment(torch.device("cpu"), ["python", *sys.argv]),
        **found,
    }
    append(Path(__file__).parent / "results" / "cpu" / "exports.jsonl", row)
    print(found)


if __name__ == "__main__":
    main()
