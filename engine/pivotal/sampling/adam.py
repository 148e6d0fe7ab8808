"""Adam as a free function over tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdamState:
    """First and second moments, the parameter's shape, float32; updates made so far."""

    mean: Tensor
    square: Tensor
    updates: int = 0

    @staticmethod
    def fresh(parameter: Tensor) -> AdamState:
        return AdamState(torch.zeros_like(parameter), torch.zeros_like(parameter))

    def select(self, rows: Tensor) -> AdamState:
        """The state of some rows [R] int64: those that are still being fitted."""
        return AdamState(self.mean[rows], self.square[rows], self.updates)


def adam_step(
    parameter: Tensor,
    gradient: Tensor,
    state: AdamState,
    learning_rate: float,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
) -> tuple[Tensor, AdamState]:
    """One update: Algorithm 1 of Kingma & Ba 2014 (arXiv:1412.6980).

    Returns the new parameter and state.
    """
    updates = state.updates + 1
    mean = torch.lerp(state.mean, gradient, 1 - beta1)
    square = beta2 * state.square + (1 - beta2) * gradient.square()
    unbiased_mean = mean / (1 - beta1**updates)
    unbiased_square = square / (1 - beta2**updates)
    moved = parameter - learning_rate * unbiased_mean / (unbiased_square.sqrt() + epsilon)
    return moved, AdamState(mean, square, updates)
