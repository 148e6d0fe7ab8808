"""Gradients of an operator through another way to compute the same thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def gradients_by_recomputing(
    function: Callable[..., tuple[Tensor | None, ...]],
    inputs: Sequence[Tensor | None],
    wanted: Sequence[bool],
    output_gradients: Sequence[Tensor],
) -> list[Tensor | None]:
    """Run `function(*inputs)` again under autograd, and pull the outputs' gradients back.

    One gradient for each input that is wanted, None for the others and for inputs that no output
    depends on. Outputs that are None or need no gradient are passed over.
    """
    leaves: list[Any] = [
        None if tensor is None else tensor.detach().requires_grad_(want)
        for tensor, want in zip(inputs, wanted, strict=True)
    ]
    with torch.enable_grad():
        pairs = [
            (output, gradient)
            for output, gradient in zip(function(*leaves), output_gradients, strict=True)
            if output is not None and output.requires_grad
        ]
        found = torch.autograd.grad(
            [output for output, _ in pairs],
            [leaf for leaf, want in zip(leaves, wanted, strict=True) if want],
            [gradient for _, gradient in pairs],
            allow_unused=True,
        )
    remaining = iter(found)
    return [next(remaining) if want else None for want in wanted]
