"""One matrix product for an attention layer's queries, keys and values, against three.

    python benchmarks/kernels/fused_qkv.py [--device cuda] [--dtype float16] [--samples 50]

The self-attention layers of SD 1.5's network, and of `shapes`, at four rows: projections alone,
and the whole layer, eager and compiled. The fused layer lives here and not in the compiled UNet: it
moves there where it pays, which on a CPU it does not. Nothing is timed that differs from three
products by more than rounding. On a CPU times are the process's CPU seconds. Appends JSON lines to
benchmarks/results/<device>/fused_qkv.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from pivotal.bench.environment import environment
from pivotal.bench.rows import append
from pivotal.bench.timing import Stopwatch

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {  # rows, tokens, channels, heads
    "shapes, 16 x 16": (4, 256, 32, 4),
    "shapes, 8 x 8": (4, 64, 64, 4),
    "shapes, 4 x 4": (4, 16, 128, 4),
    "sd1 at 32 x 32, first": (4, 1024, 320, 8),
    "sd1 at 32 x 32, second": (4, 256, 640, 8),
    "sd1 at 32 x 32, third": (4, 64, 1280, 8),
}

Layer = Callable[[Tensor, Tensor, int], Any]
"""(tokens [B, N, C], weights [3 C, C], heads) to [B, N, C], or to three of them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    given = parser.parse_args()
    device = torch.device(given.device)
    for name, (rows, tokens, channels, heads) in LAYERS.items():
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(rows, tokens, channels, generator=generator)
        weights = torch.randn(3 * channels, channels, generator=generator) / channels**0.5
        inputs = (
            x.to(device, getattr(torch, given.dtype)),
            weights.to(device, getattr(torch, given.dtype)),
            heads,
        )
        row = {
            "benchmark": "fused_qkv",
            "where": name,
            "shape": [rows, tokens, channels, heads],
            "dtype": given.dtype,
            "threads": torch.get_num_threads(),
            **measured(inputs, given.samples, device),
            "environment": environment(device, ["python", *sys.argv]),
        }
        append(given.results / Stopwatch(device).name / "fused_qkv.jsonl", row)
        print(json.dumps(row), flush=True)


def measured(
    inputs: tuple[Tensor, Tensor, int], samples: int, device: torch.device
) -> dict[str, Any]:
    pairs: dict[str, tuple[Layer, Layer]] = {
        "projections": (three_products, one_product),
        "layer": (three, fused),
        "layer, compiled": (compiled(three), compiled(fused)),
    }
    found: dict[str, Any] = {}
    with torch.no_grad():
        for name, pair in pairs.items():
            one, other = (run(*inputs) for run in pair)
            torch.testing.assert_close(one, other)
            times: tuple[list[float], list[float]] = ([], [])
            for turn in range(samples):
                for place in (0, 1) if turn % 2 else (1, 0):
                    times[place].append(seconds(pair[place], inputs, device))
            found[name] = {
                "three_ms": 1000 * statistics.median(times[0]),
                "fused_ms": 1000 * statistics.median(times[1]),
                "speedup": statistics.median(a / b for a, b in zip(*times, strict=True)),
            }
    return found


def compiled(layer: Layer) -> Layer:
    torch.compiler.reset()
    made: Layer = torch.compile(layer, fullgraph=True, dynamic=False)
    return made


def seconds(run: Layer, inputs: tuple[Tensor, Tensor, int], device: torch.device) -> float:
    """Of one call, the mean of five."""
    cuda = device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize(device)
    start = clock()
    for _ in range(5):
        run(*inputs)
    if cuda:
        torch.cuda.synchronize(device)
    return (clock() - start) / 5


def three_products(x: Tensor, weights: Tensor, heads: int) -> tuple[Tensor, ...]:
    return tuple(linear(x, each) for each in weights.chunk(3))


def one_product(x: Tensor, weights: Tensor, heads: int) -> tuple[Tensor, ...]:
    return linear(x, weights).chunk(3, dim=-1)


def three(x: Tensor, weights: Tensor, heads: int) -> Tensor:
    return attended(three_products(x, weights, heads), heads)


def fused(x: Tensor, weights: Tensor, heads: int) -> Tensor:
    return attended(one_product(x, weights, heads), heads)


def attended(projected: tuple[Tensor, ...], heads: int) -> Tensor:
    query, key, value = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in projected)
    return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


if __name__ == "__main__":
    main()
