"""The golden check: a network outside PyTorch against the torch module that it was made from."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pivotal.errors import BackendError
from pivotal.runtime.exported.float32_copy import float32_copy
from pivotal.runtime.exported.network import Network
from pivotal.runtime.exported.parts import Part
from pivotal.runtime.exported.profile import ShapeProfile
from pivotal.runtime.float32_arithmetic import float32_arithmetic

Answers = list[tuple[Tensor, ...]]
"""The outputs of a network in order, for each of several inputs."""
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


def answers(part: Part, network: Network, profile: ShapeProfile) -> Answers:
    """What a network outside PyTorch makes of random inputs of several shapes.

    Copies: an output that is kept would keep all scratch memory of ONNX Runtime's session alive.
    """
    return [
        tuple(each.clone() for each in network(inputs)) for _, inputs in _examples(part, profile)
    ]


def compare(part: Part, found: Answers, profile: ShapeProfile) -> float:
    """The largest difference over the largest output, between such answers and torch's.

    float32 networks are compared with torch, half precision ones with torch in float32, where
    torch's own half precision sets the measure. The network that answered need not live any more:
    two of SDXL's size are much memory.

    Raises BackendError for a difference that is too large, or another shape.
    """
    half = part.dtype != torch.float32
    reference = float32_copy(part.module) if half else part.module
    worst = 0.0
    for (shape, inputs), answer in zip(_examples(part, profile), found, strict=True):
        expected = _outputs(reference, _float32(inputs) if half else inputs)
        own = _outputs(part.module, inputs) if half else expected
        for name, mine, torchs, right in zip(part.outputs, answer, own, expected, strict=True):
            error = difference(mine, right)
            allowed = TOLERANCE + (_FLOOR + _TIMES * difference(torchs, right) if half else 0)
            if not error <= allowed:
                rows, height, width = shape
                raise BackendError(
                    f"{part.name} outside PyTorch differs from torch by {error:.1e} of its largest "
                    f"{name} at {rows} rows of {height} x {width} pixels, over {allowed:.1e}; "
                    "it is not kept"
                )
            worst = max(worst, error)
    return worst


def _examples(
    part: Part, profile: ShapeProfile
) -> Iterator[tuple[tuple[int, int, int], dict[str, Tensor]]]:
    for seed, shape in enumerate(example_shapes(profile), start=1):
        yield shape, part.inputs(*shape, seed)


def _outputs(module: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad(), float32_arithmetic(tf32=False):
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
