"""Text encoders and the autoencoder rest on the CPU and visit the device while they are used."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from pivotal.model.load import Model

_REST = "cpu"


class Visiting:
    """Networks that are on `device` only within `present`."""

    def __init__(self, networks: Sequence[nn.Module], device: torch.device) -> None:
        self._networks = tuple(networks)
        self._device = device
        self._alone = threading.RLock()
        self._stay = False
        self._move(_REST)

    @contextmanager
    def present(self) -> Iterator[None]:
        """On the device within. Where gradients are taken they stay there from then on: a backward
        pass, which comes later, needs the weights where they were.
        """
        with self._alone:
            self._stay |= torch.is_grad_enabled()
            self._move(self._device)
            try:
                yield
            finally:
                if not self._stay:
                    self._move(_REST)

    def _move(self, device: torch.device | str) -> None:
        for network in self._networks:
            network.to(device)


def offload(model: Model) -> None:
    """From now on the UNet alone stays on the model's device. Raises ValueError for a CPU."""
    if model.device.type == "cpu":
        raise ValueError("offload with device 'cpu': every network is there anyway; leave it out")
    model.text.visiting = Visiting(model.text.encoders, model.device)
    model.autoencoder.visiting = Visiting([model.autoencoder.vae], model.device)
