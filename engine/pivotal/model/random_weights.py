"""Seeded random weights for a true architecture: for work on speed and memory, without a download.

Every weight is a window of one block of normal numbers, drawn once in float32 on the CPU. So a
model of 2.6 billion parameters takes seconds, and is the same on every device, and in every dtype
but for rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pivotal.model.networks import restore_buffers

VERSION = 1
"""Part of the fingerprint: another recipe makes another model."""

_BLOCK = 1_048_573  # prime, so that no two rows of a weight start at the same place

# What a residual branch adds to its stream is kept small: depth must not overflow float16.
_RESIDUAL_ENDS = ("conv2", "to_out.0", "ff.net.2", "out_proj", "fc2")
_RESIDUAL_GAIN = 0.5
# Sharper attention to words: a random text tower's tokens are otherwise averaged away.
_LISTENING = ("attn2.to_q", "attn2.to_k")
_LISTENING_GAIN = 2.0
_EMBEDDING_STD = 0.02


class RandomWeights:
    """Fills networks one after another from one seed."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._block = torch.randn(_BLOCK, generator=generator)  # float32
        self._cursor = 0

    def fill(self, network: nn.Module, *, device: torch.device, dtype: torch.dtype) -> None:
        """Give a network on the meta device memory in the dtype on the device, and weights.

        Normal with std 1/sqrt(fan in); norms are 1 and 0, biases 0. No copy of the network in
        another dtype is made.
        """
        nn.Module.to(network, dtype).to_empty(device=device)  # diffusers' own `to` only warns
        block = self._block.to(device)
        with torch.no_grad():
            for name, module in network.named_modules():
                own = dict(module.named_parameters(recurse=False))
                for kind, parameter in own.items():
                    if parameter.ndim < 2:
                        parameter.fill_(1.0 if kind == "weight" else 0.0)  # a norm, or a bias
                    else:
                        self._draw(parameter, block, _std(name, module, parameter))
        restore_buffers(network, device)

    def _draw(self, parameter: Tensor, block: Tensor, std: float) -> None:
        flat, at = parameter.view(-1), 0
        while at < len(flat):
            part = block[self._cursor : self._cursor + len(flat) - at]
            flat[at : at + len(part)].copy_(part * std)
            at += len(part)
            self._cursor = (self._cursor + len(part)) % _BLOCK


def _std(name: str, module: nn.Module, parameter: Tensor) -> float:
    if isinstance(module, nn.Embedding):
        return _EMBEDDING_STD
    std = 1 / math.sqrt(parameter[0].numel())
    if name.endswith(_RESIDUAL_ENDS):
        std *= _RESIDUAL_GAIN
    if name.endswith(_LISTENING):
        std *= _LISTENING_GAIN
    return std
