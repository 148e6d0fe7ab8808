"""LocalBlend: words' attention, summed over the steps, bounds where the picture may change.

Hertz et al. 2022 (arXiv:2208.01626), section 3.2 "Local editing", as in the authors' code.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, interpolate, max_pool2d


def word_mask(maps: Tensor, size: tuple[int, int], threshold: float, *, pool: bool) -> Tensor:
    """Where accumulated word maps [R, mh, mw] exceed a fraction of their own maximum: bool [R, h,
    w].

    pool: widen by a 3 x 3 maximum first. A map of zeros (no such word in that row) gives no region.
    """
    maps = maps[:, None]
    if pool:
        maps = max_pool2d(maps, kernel_size=3, stride=1, padding=1)
    maps = interpolate(maps, size=size, mode="nearest")[:, 0]
    peak = maps.amax(dim=(-1, -2), keepdim=True)
    return (maps > threshold * peak) & (peak > 0)


def blend(latents: Tensor, mask: Tensor) -> Tensor:
    """Targets, the rows after the first, take the source's latents outside masks [T, h, w]."""
    source, targets = latents[:1], latents[1:]
    return torch.cat([source, torch.where(mask[:, None], targets, source)])


def latent_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture's mask [H, W] bool at the latents' size: a latent may change if any of its pixels
    may.
    """
    return adaptive_max_pool2d(mask[None].float(), size)[0] > 0
