"""Losses read from a device that goes on working meanwhile."""

from __future__ import annotations

import torch
from torch import Tensor


class LossReading:
    """Losses [B] on their way to the host: `values` waits for them, and for nothing that the device
    was asked for since.
    """

    def __init__(self, losses: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._values = losses
        if losses.device.type == "cuda":
            self._values = torch.empty(losses.shape, dtype=losses.dtype, pin_memory=True)
            self._values.copy_(losses, non_blocking=True)
            with torch.cuda.device(losses.device):
                self._arrived = torch.cuda.Event()
                self._arrived.record()

    def values(self) -> Tensor:
        """[B], on the host."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values
