"""What a network outside PyTorch is to its users, whatever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Network(Protocol):
    """Tensors by name in, tensors in order out, on the network's device. Safe for many threads."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Outputs are the caller's: no later call writes into them."""
        ...
