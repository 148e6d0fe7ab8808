"""Loss scaling: gradients that float16 can say.

Null-text's gradient at the network's prediction is about 1e-7, below float16's smallest normal
number, 6e-5. It is multiplied before the backward pass and divided after it, in float32
(Micikevicius et al. 2017, "Mixed Precision Training", arXiv:1710.03740, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["dynamic", "static"]

_FAINTEST = 2.0**-100  # a row of zeros gets a finite factor


@dataclass(frozen=True)
class LossScaling:
    """By how much gradients are multiplied before they go back through the network.

    dynamic: each row by its own power of two, so that its largest entry at the prediction lies in
    [2^exponent, 2^(exponent + 1)). It depends on that row alone, not on its company nor on earlier
    steps, and in float32 it changes nothing; in float16 exponents 0 to 12 did equally well.
    static: all rows by 2^exponent; a loss that becomes small in the end then loses its gradient.
    """

    kind: Kind = "dynamic"
    exponent: int = 4

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(
                f"kind={self.kind!r} of loss scaling is unknown; accepted are "
                f"{', '.join(get_args(Kind))}"
            )
        if not -24 <= self.exponent <= 60:
            raise ValueError(f"exponent={self.exponent} of loss scaling; -24 to 60 are possible")

    def factors(self, gradient: Tensor) -> Tensor:
        """Powers of two [B], for the gradient [B, C, h, w] float32 or float64 at the prediction."""
        if self.kind == "static":
            return gradient.new_full(gradient.shape[:1], 2.0**self.exponent)
        largest = gradient.abs().amax(dim=(1, 2, 3)).clamp(min=_FAINTEST)
        return torch.exp2(self.exponent - largest.log2().floor())
