"""What a case's result must be before its time means anything."""

from __future__ import annotations

import torch
from torch import Tensor

from pivotal.bench.errors import WrongResultError


def require_finite(values: Tensor, what: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise WrongResultError(f"{what} holds NaN or infinity")


def require_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> float:
    """The largest difference over the largest expected value, at most `tolerance`."""
    require_finite(actual, what)
    difference = (actual.double() - expected.double()).abs().max()
    error = float(difference / expected.double().abs().max())
    if not error <= tolerance:
        raise WrongResultError(f"{what} is off by {error:.1e} of its largest; {tolerance:.0e} is "
                               "allowed")  # fmt: skip
    return error
