"""Linear layers in 8-bit floats, by torchao, which is imported here and only when asked for.

Weights and activations are rounded to e4m3, each row of them with a scale of its own, and
multiplied by the GPU's fp8 units. Convolutions stay in bfloat16. torch has no derivative of such a
product, so there are forward passes alone: null-text is refused.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from pivotal.driver import Denoiser
from pivotal.errors import BackendError
from pivotal.query import Answer, Denoise, Query

_WHOLE = 16  # fp8 matrix units take sides in multiples of it


class ForwardOnly:
    """A denoiser on a network in fp8, which has no gradients."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        return f"{self.inner.name} fp8"

    @property
    def answers(self) -> frozenset[type]:
        return self.inner.answers & {Denoise}

    def __getattr__(self, name: str) -> Any:
        """What else the inner denoiser has: its counters, its device."""
        return getattr(self.__dict__["inner"], name)

    def answer(self, query: Query) -> Answer:
        """Raises TypeError for a query that needs a gradient."""
        if not isinstance(query, Denoise):
            raise TypeError(f"{self.name} answers no {type(query).__name__}")
        return self.inner.answer(query)


def quantize(network: nn.Module) -> None:
    """Put a network's linear layers into fp8, in place.

    Raises BackendError where torchao is not installed or refuses.
    """
    try:
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            PerRow,
            quantize_,
        )
    except ImportError as error:
        raise BackendError(
            f"fp8 needs torchao, which can't be imported ({error}); install pivotal[fp8]"
        ) from error
    try:
        quantize_(network, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()), fits)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise BackendError(
            f"torchao could not put the network into fp8: {str(error).splitlines()[0]}; choose "
            "another dtype"
        ) from error


def fits(module: nn.Module, name: str) -> bool:
    """A linear layer whose sides fp8 matrix units take."""
    if not isinstance(module, nn.Linear):
        return False
    return module.in_features % _WHOLE == 0 and module.out_features % _WHOLE == 0
