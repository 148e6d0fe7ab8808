"""The golden check: a network outside PyTorch against the torch module that it was made from."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pivotal.errors import BackendError
from pivotal.runtime.exported.network import Network
from pivotal.runtime.exported.parts import Part
from pivotal.runtime.exported.profile import ShapeProfile

TOLERANCE = 1e-4
"""In float32: largest difference over the largest output, about 1000 roundings."""
_TIMES, _FLOOR = 4.0, 2e-3
"""In half precision: an error against float32 of at most so many times torch's own."""


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


def compare(part: Part, network: Network, profile: ShapeProfile) -> float:
    """The largest difference over the largest output, on random inputs of several shapes.

    float32 networks are compared with torch, half precision ones with torch in float32, where
    torch's own half precision sets the measure.

    Raises BackendError for one that is too large, or another shape.
    """
    half = next(part.module.parameters()).dtype != torch.float32
    reference = copy.deepcopy(part.module).float() if half else part.module
    worst = 0.0
    for seed, (rows, height, width) in enumerate(example_shapes(profile), start=1):
        inputs = part.inputs(rows, height, width, seed)
        expected = _outputs(reference, _float32(inputs) if half else inputs)
        own = _outputs(part.module, inputs) if half else expected
        for name, mine, torchs, right in zip(
            part.outputs, network(inputs), own, expected, strict=True
        ):
            error = difference(mine, right)
            allowed = TOLERANCE + (_FLOOR + _TIMES * difference(torchs, right) if half else 0)
            if not error <= allowed:
                raise BackendError(
                    f"{part.name} outside PyTorch differs from torch by {error:.1e} of its largest "
                    f"{name} at {rows} rows of {height} x {width} pixels, over {allowed:.1e}; "
                    "it is not kept"
                )
            worst = max(worst, error)
    return worst


def _outputs(module: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found = module(**inputs)
    return found if isinstance(found, tuple) else (found,)


def _float32(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: value.float() if value.is_floating_point() else value
        for name, value in inputs.items()
    }


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
