"""A network in half precision as one that computes in float32, in little more memory."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

_LARGE = 2**20  # entries: smaller weights are held in float32


class _Float32(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.float()


def float32_copy(network: nn.Module) -> nn.Module:
    """The same function of float32 inputs, with the same weights, nothing rounded to half.

    Large weights stay the given network's own tensors, and become float32 each while its layer
    runs: all of SDXL's UNet at once are 10 GB.
    """
    shared = {id(each): each for each in network.parameters()}
    copied = copy.deepcopy(network, memo=shared)
    for layer in list(copied.modules()):
        for name, weight in list(layer.named_parameters(recurse=False)):
            if not weight.is_floating_point():
                continue
            if weight.numel() < _LARGE:
                setattr(layer, name, nn.Parameter(weight.float(), requires_grad=False))
            else:
                register_parametrization(layer, name, _Float32(), unsafe=True)  # another dtype
        for name, value in layer.named_buffers(recurse=False):
            if value.is_floating_point():
                setattr(layer, name, value.to(torch.float32))
    return copied
