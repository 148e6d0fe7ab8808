"""Seconds, memory and file sizes of an export to ONNX, and of TensorRT-RTX engines built from it.

    OMP_NUM_THREADS=1 python benchmarks/exports.py --model random:sd1 --side 512 --sm 89

The files go to a temporary folder (`--keep` names another); every network is compared with torch
before its row is written, but for `--unchecked`. Engines are for one batch size and hold each
target GPU's kernels. A row is added to benchmarks/results/cpu/exports.jsonl (`--results`).
"""

from __future__ import annotations

import argparse
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from pivotal.bench.environment import environment
from pivotal.bench.rows import append
from pivotal.model.load import Model, load
from pivotal.runtime.exported.onnx_check import checked
from pivotal.runtime.exported.onnx_export import export_onnx, write_onnx
from pivotal.runtime.exported.parts import PLAIN, UNET, parts_of
from pivotal.runtime.exported.profile import ShapeProfile, Span
from pivotal.runtime.exported.tensorrt_api import api_of
from pivotal.runtime.exported.tensorrt_build import BuildOptions, build

T = TypeVar("T")
RESULTS = Path(__file__).parent / "results" / "cpu" / "exports.jsonl"


def timed(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What work returns; its seconds by the clock and of CPU time."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {"clock": time.perf_counter() - clock, "cpu": time.process_time() - cpu}


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of all files that lie in a folder."""
    return {each.name: each.stat().st_size for each in sorted(folder.iterdir()) if each.is_file()}


def measured(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Export, and build for each of `--sm`. Raises BackendError for a file that differs."""
    onnx, engines = folder / "onnx", folder / "engines"
    onnx.mkdir()
    side = Span(arguments.side, arguments.side)
    profile = ShapeProfile(arguments.rows, side, side)
    model = load(arguments.model, dtype=arguments.dtype)
    scale = model.autoencoder.scale
    checks = not arguments.unchecked
    work = partial(routed_unet, check=checks) if arguments.unet_only else all_networks
    with own_memory() as most:
        errors, seconds = timed(partial(work, model, profile, onnx))
    found: dict[str, Any] = {
        "onnx": {
            "seconds": seconds,
            "bytes": sizes(onnx),
            "largest_difference": errors,
            "peak_bytes": peak(),
            "peak_own_bytes": most[0],
        }
    }
    del model, work  # a builder needs their memory
    if arguments.sm:
        engines.mkdir()
        api = api_of("tensorrt_rtx")
        options = BuildOptions(sm=tuple(arguments.sm), buckets=(arguments.rows.high,))
        found["tensorrt_rtx"] = {"version": api.version, "seconds": {}}
        with own_memory() as most:
            for name in (UNET,) if arguments.unet_only else (UNET, PLAIN):
                plan, seconds = timed(
                    partial(build, onnx / f"{name}.onnx", profile, scale, api, options)
                )
                (engines / f"{name}.engine").write_bytes(plan)
                del plan
                found["tensorrt_rtx"]["seconds"][name] = seconds
        found["tensorrt_rtx"] |= {"bytes": sizes(engines), "peak_own_bytes": most[0]}
    return found


def all_networks(model: Model, profile: ShapeProfile, folder: Path) -> dict[str, float]:
    return export_onnx(model, profile, folder).errors


def routed_unet(
    model: Model, profile: ShapeProfile, folder: Path, *, check: bool
) -> dict[str, float]:
    """The UNet with routes alone, compared as `export_onnx` does, or not at all."""
    part = next(parts_of(model, profile))
    path = folder / f"{part.name}.onnx"
    write_onnx(part, profile, path, {"pivotal.model": model.name})
    return {part.name: checked(part, path, profile)} if check else {}


def peak() -> int:
    """Most bytes that the process held so far, pages of mapped files too, on Linux."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def own_memory() -> Iterator[list[int]]:
    """The most bytes of memory that is in no file, asked 20 times a second, on Linux: what must be
    free, as the kernel takes mapped pages back. It is the list's one number, to read at the end.
    """
    most, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
            assert found is not None
            most[0] = max(most[0], int(found[1]) * 1024)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield most
    finally:
        ended.set()
        watcher.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--rows", type=Span.parse, default=Span(2, 2))
    parser.add_argument("--sm", nargs="*", default=[], help="engines for these, as 89 120")
    parser.add_argument("--unet-only", action="store_true", help="the UNet with routes alone")
    parser.add_argument("--unchecked", action="store_true", help="with --unet-only: no comparison")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file to add a row to")
    parser.add_argument("--keep", type=Path, help="a new folder for the files")
    arguments = parser.parse_args()
    if arguments.unchecked and not arguments.unet_only:
        parser.error("--unchecked is for --unet-only: a whole export is always compared")
    if arguments.keep is None:
        with TemporaryDirectory() as folder:
            found = measured(arguments, Path(folder))
    else:
        arguments.keep.mkdir(parents=True)
        found = measured(arguments, arguments.keep)
    settings = {
        "model": arguments.model,
        "dtype": arguments.dtype,
        "side": arguments.side,
        "rows": str(arguments.rows),
        "sm": arguments.sm,
        "unet_only": arguments.unet_only,
        "unchecked": arguments.unchecked,
        "shared_machine": True,
    }
    row = {
        "benchmark": "exports",
        "settings": settings,
        "environment": environment(torch.device("cpu"), ["python", *sys.argv]),
        **found,
    }
    append(arguments.results, row)
    print(found)


if __name__ == "__main__":
    main()
