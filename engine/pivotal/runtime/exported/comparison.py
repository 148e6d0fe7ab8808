"""The golden check: a network outside PyTorch against the torch module that it was made from."""

from __future__ import annotations

import torch
from torch import Tensor

from pivotal.errors import BackendError
from pivotal.runtime.exported.network import Network
from pivotal.runtime.exported.parts import Part
from pivotal.runtime.exported.profile import ShapeProfile

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}
"""Largest difference over the largest output, by format: about 1000 roundings in float32, 20 in the
others."""


def example_shapes(profile: ShapeProfile) -> list[tuple[int, int, int]]:
    """Batches (rows, height, width) to trace and compare by, inside the profile.

    The first is for tracing: where rows vary it has at least two, as one row would be taken for a
    constant.
    """
    rows, height, width = profile.rows, profile.height, profile.width
    first = (min(max(rows.low, 3), rows.high), height.low, width.low)
    last = (rows.low, height.low, width.low)
    if not (height.static and width.static):
        middle = (height.high if height.static else _between(height.low, height.high), width.high)
        last = (rows.low, *middle)
    return [first, last]


def compare(part: Part, network: Network, profile: ShapeProfile, dtype: torch.dtype) -> float:
    """The largest difference over the largest output, on random inputs of several shapes.

    Raises BackendError if it passes the format's tolerance, or a shape differs.
    """
    tolerance = TOLERANCE[torch.float32 if part.name.startswith("vae") else dtype]
    worst = 0.0
    for seed, (rows, height, width) in enumerate(example_shapes(profile), start=1):
        inputs = part.inputs(rows, height, width, seed)
        with torch.no_grad():
            expected = part.module(**inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for name, mine, torchs in zip(part.outputs, network(inputs), expected, strict=True):
            error = difference(mine, torchs)
            if not error <= tolerance:
                raise BackendError(
                    f"{part.name} outside PyTorch differs from torch by {error:.1e} of its largest "
                    f"{name} at {rows} rows of {height} x {width} pixels, over {tolerance:g}; "
                    "it is not kept"
                )
            worst = max(worst, error)
    return worst


def difference(mine: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute value; infinite for other shapes."""
    if mine.shape != expected.shape:
        return float("inf")
    mine, expected = mine.double().cpu(), expected.double().cpu()
    return float((mine - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def _between(low: int, high: int) -> int:
    """A size that is neither the one traced nor the largest, where there is one: both are whole
    multiples of the same unit, and so is low plus a power of two of it below high.
    """
    return low if low == high else min(2 * low, high)
