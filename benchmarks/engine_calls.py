"""What a programmer waits for: a first and a tenth edit from a file, a cached inversion, a cancel.

    python benchmarks/engine_calls.py [--model shapes] [--method null-text] [--steps 50]
        [--threads 1]

The first edit is timed from a loaded engine and includes reading the file and the probe of the
attention layers. Refuses to report where the tenth edit differs from the first, or the cached
inversion from the one that was run. Appends one JSON line to
benchmarks/results/<device>/engine_calls.jsonl and prints it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch

import pivotal
from pivotal.bench.environment import environment
from pivotal.bench.rows import append
from pivotal.bench.timing import Stopwatch
from pivotal.driver import Denoiser
from pivotal.query import Answer, Query

ROOT = Path(__file__).resolve().parent
PROMPT = "a red star on a gray background"
TARGET = "a yellow star on a gray background"
EDITS = 10


class Counting:
    """A denoiser that passes everything on and counts its calls."""

    def __init__(self, inner: Denoiser) -> None:
        self.name, self.answers, self._inner = inner.name, inner.answers, inner
        self.calls = 0

    def answer(self, query: Query) -> Answer:
        self.calls += 1
        return self._inner.answer(query)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--method", default="null-text")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        figures = measured(given, Path(folder))
    row = {
        "benchmark": "engine_calls",
        "model": given.model,
        "method": given.method,
        "steps": given.steps,
        "threads": given.threads,
        **figures,
        "environment": environment(
            torch.device(given.device), ["python", "benchmarks/engine_calls.py", *sys.argv[1:]]
        ),
    }
    name = Stopwatch(torch.device(given.device)).name
    append(ROOT / "results" / name / "engine_calls.jsonl", row)
    sys.stdout.write(json.dumps(row) + "\n")


def measured(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    cache = pivotal.InversionCache(folder / "cache")
    engine = pivotal.Engine.load(given.model, device=given.device, cache=cache)

    def invert() -> pivotal.Inversion:
        with as_file(files("pivotal") / "bundled/pictures/scene.png") as picture:
            return engine.invert(
                picture, PROMPT, method=given.method, num_inference_steps=given.steps
            )

    inverted, first_inversion = timed(invert)
    again, cached_inversion = timed(invert)
    if not torch.equal(again.inverted.noise.cpu(), inverted.inverted.noise.cpu()):
        raise SystemExit("the cached inversion is not the one that was run")
    file = folder / "inversion.safetensors"
    pivotal.write_inversion(inverted, file)
    edits = [timed(lambda: engine.edit(pivotal.read_inversion(file), TARGET)) for _ in range(EDITS)]
    first, last = edits[0][0].latents, edits[-1][0].latents
    if not torch.allclose(first, last, atol=1e-4):
        raise SystemExit("the tenth edit is not the first")
    calls, seconds = cancelled_edit(engine, pivotal.read_inversion(file))
    return {
        "seconds": {
            "load": engine.load_seconds,
            "inversion": first_inversion,
            "cached_inversion": cached_inversion,
            "first_edit": edits[0][1],
            "tenth_edit": edits[-1][1],
            "cancelled_after": seconds,
        },
        "samples": {"edits": [each[1] for each in edits]},
        "bytes": file.stat().st_size,
        "unet_calls_begun_after_cancel": calls,
    }


def cancelled_edit(engine: pivotal.Engine, inversion: pivotal.Inversion) -> tuple[int, float]:
    """Cancel from another thread in mid-run: calls begun after it, seconds until it had ended."""
    denoiser = Counting(engine.denoiser)
    counted = pivotal.Engine(engine.model, denoiser)
    counted.edit(inversion, TARGET)  # probed and warm
    cancellation, begun = pivotal.Cancellation(), threading.Event()
    at: dict[str, float] = {}

    def cancel() -> None:
        begun.wait()
        time.sleep(0.5)  # somewhere inside a step
        at["calls"], at["time"] = denoiser.calls, time.perf_counter()
        cancellation.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    try:
        counted.edit(
            inversion,
            TARGET,
            cancellation=cancellation,
            on_progress=lambda notice: begun.set(),
        )
    except pivotal.Cancelled:
        ended = time.perf_counter()
    else:
        raise SystemExit("the edit had ended before it was cancelled; use more steps")
    finally:
        canceller.join()
    return int(denoiser.calls - at["calls"]), ended - at["time"]


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()
