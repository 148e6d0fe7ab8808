"""GroupNorm and SiLU at the shapes of SD 1.5's residual blocks: eager, compiled, one kernel.

    python benchmarks/kernels/group_norm_silu.py [--device cuda] [--dtype float16] [--samples 50]

The Triton kernel lives here and not in pivotal_kernels: it moves there if it beats the compiler's
on a GPU. Nothing is timed that is further from float64 than twice eager's error. On a CPU eager and
compiled alone are timed. Appends JSON lines to benchmarks/results/<device>/group_norm_silu.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import group_norm, silu

from pivotal.bench.environment import environment
from pivotal.bench.rows import append
from pivotal.bench.timing import Stopwatch

ROOT = Path(__file__).resolve().parents[1]
SHAPES = ((4, 320, 64, 64), (4, 640, 32, 32), (4, 1280, 16, 16), (4, 1280, 8, 8))
GROUPS, EPSILON = 32, 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    given = parser.parse_args()
    device = torch.device(given.device)
    stopwatch = Stopwatch(device)
    runs: dict[str, Callable[..., Tensor]] = {
        "eager": eager,
        "compiled": torch.compile(eager, fullgraph=True, dynamic=False),
    }
    if device.type == "cuda":
        runs["triton"] = one_kernel
    for shape in SHAPES:
        row = {
            "benchmark": "group_norm_silu",
            "shape": shape,
            "dtype": given.dtype,
            **measured(shape, runs, getattr(torch, given.dtype), stopwatch, given.samples),
            "environment": environment(device, ["python", *sys.argv]),
        }
        append(given.results / stopwatch.name / "group_norm_silu.jsonl", row)
        print(json.dumps(row), flush=True)


def measured(
    shape: tuple[int, ...],
    runs: dict[str, Callable[..., Tensor]],
    dtype: torch.dtype,
    stopwatch: Stopwatch,
    samples: int,
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    exact_inputs = [
        torch.randn(size, generator=generator, dtype=torch.float64)
        for size in (shape, shape[1:2], shape[1:2])
    ]
    inputs = [each.to(stopwatch.device, dtype) for each in exact_inputs]
    exact = eager(*(each.double() for each in inputs))
    allowed = 2 * (eager(*inputs) - exact).abs().max() + 1e-7
    for name, run in runs.items():
        error = (run(*inputs) - exact).abs().max()
        if not error <= allowed:
            raise SystemExit(f"{name} is off by {error}, where {allowed} is allowed")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(samples):
        for name, run in runs.items():
            times[name].append(stopwatch.seconds(partial(run, *inputs)))
    medians = {name: sorted(each)[samples // 2] for name, each in times.items()}
    moved = 2 * inputs[0].numel() * inputs[0].element_size()
    return {
        "seconds": medians,
        "bytes_per_second": {name: moved / each for name, each in medians.items()},
        "samples": times,
    }


def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return silu(group_norm(x, GROUPS, weight, bias, EPSILON))


def one_kernel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One program for each row and group: mean and variance in one pass, the output in a second,
    for which the group's values are still in cache. x: [B, C, h, w], contiguous.
    """
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def kernel(
        x_at: Any,
        weight_at: Any,
        bias_at: Any,
        out_at: Any,
        size: int,
        area: int,
        channels: int,
        groups: tl.constexpr,
        epsilon: tl.constexpr,
        block: tl.constexpr,
    ) -> None:
        program = tl.program_id(0).to(tl.int64)
        first = program % groups * channels  # of the group's channels
        total = tl.zeros([block], tl.float32)
        squares = tl.zeros([block], tl.float32)
        for begin in range(0, size, block):
            place = begin + tl.arange(0, block)
            value = tl.load(x_at + program * size + place, place < size, 0.0).to(tl.float32)
            total += value
            squares += value * value
        mean = tl.sum(total) / size
        scale = tl.rsqrt(tl.sum(squares) / size - mean * mean + epsilon)
        for begin in range(0, size, block):
            place = begin + tl.arange(0, block)
            inside = place < size
            value = tl.load(x_at + program * size + place, inside, 0.0).to(tl.float32)
            channel = first + place // area
            weight = tl.load(weight_at + channel, inside, 0.0).to(tl.float32)
            bias = tl.load(bias_at + channel, inside, 0.0).to(tl.float32)
            y = (value - mean) * scale * weight + bias
            tl.store(out_at + program * size + place, y * tl.sigmoid(y), inside)

    out = torch.empty_like(x)
    channels = x.shape[1] // GROUPS
    area = x.shape[2] * x.shape[3]
    kernel[(x.shape[0] * GROUPS,)](
        x, weight, bias, out, channels * area, area, channels, GROUPS, EPSILON, 1024, num_warps=4
    )  # fmt: skip
    return out


if __name__ == "__main__":
    main()
