"""Penalties that say how far predicted noise is from Gaussian noise, and their gradients.

Parmar et al. 2023, "Zero-shot Image-to-Image Translation" (arXiv:2302.03027), section 3.2, and the
patch form of Garibi et al. 2024 (arXiv:2403.14602), section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, unfold

PATCH = 4
_SMALLEST_SIDE = 8
_EPSILON = 1e-6


def autocorrelation(noise: Tensor, shifts: list[tuple[int, int]]) -> Tensor:
    """Squared correlation with itself shifted, over a pyramid of halved sides: [B].

    noise: [B, C, h, w]. shifts: (rows, columns) for each level of the pyramid, finest first.
    """
    total = noise.new_zeros(noise.shape[0])
    for down, right in shifts:
        for amount, dimension in ((down, 2), (right, 3)):
            product = noise * noise.roll(amount, dims=dimension)
            total = total + product.mean(dim=(2, 3)).square().sum(dim=1)
        noise = avg_pool2d(noise, 2)
    return total


def random_shifts(size: tuple[int, int], generator: torch.Generator) -> list[tuple[int, int]]:
    """A shift of under half each side, for each level of the pyramid down to a side of 8."""
    shifts = []
    while True:
        down, right = (
            int(torch.randint(max(side // 2, 1), (1,), generator=generator)) for side in size
        )
        shifts.append((down, right))
        if min(size) <= _SMALLEST_SIDE:
            return shifts
        size = (size[0] // 2, size[1] // 2)


def patch_divergence(noise: Tensor, reference: Tensor) -> Tensor:
    """Twice the KL divergence between Gaussians fitted to each 4 x 4 patch of each channel, summed:
    [B].

    noise, reference: [B, C, h, w]. What is left over of sides that 4 does not divide is not seen.
    """

    def statistics(values: Tensor) -> tuple[Tensor, Tensor]:
        rows, channels = values.shape[:2]
        patches = unfold(values, PATCH, stride=PATCH)
        patches = patches.view(rows, channels, PATCH * PATCH, -1)
        return patches.mean(dim=2), patches.var(dim=2)

    mean, variance = statistics(noise)
    wanted_mean, wanted = statistics(reference)
    ratio = (wanted + _EPSILON) / (variance + _EPSILON)
    divergence = ratio.log() + (variance + (mean - wanted_mean).square()) / (wanted + _EPSILON) - 1
    return divergence.abs().sum(dim=(1, 2))


def autocorrelation_gradient(noise: Tensor, generator: torch.Generator) -> Tensor:
    """Of `autocorrelation` at one draw of shifts: [B, C, h, w]. Rows share the shifts."""
    shifts = random_shifts((noise.shape[2], noise.shape[3]), generator)
    return _gradient(lambda values: autocorrelation(values, shifts), noise)


def patch_divergence_gradient(noise: Tensor, reference: Tensor) -> Tensor:
    """Of `patch_divergence` with respect to noise: [B, C, h, w]."""
    return _gradient(lambda values: patch_divergence(values, reference), noise)


def _gradient(penalty: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    with torch.enable_grad():
        variable = values.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(penalty(variable).sum(), variable)
    return gradient
