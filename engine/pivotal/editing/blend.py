"""LocalBlend: words' attention, summed over the steps, bounds where the picture may change.

Hertz et al. 2022 (arXiv:2208.01626), section 3.2 "Local editing", as in the authors' code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, conv2d, interpolate, max_pool2d, pad


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
    """Targets, the rows after the first, take the source's latents outside masks [T, h, w].

    mask: bool, or weights of the target from 0 to 1; at these two the result is exact.
    """
    source, targets = latents[:1], latents[1:]
    if mask.dtype == torch.bool:
        return torch.cat([source, torch.where(mask[:, None], targets, source)])
    weights = mask[:, None].to(latents)
    return torch.cat([source, weights * targets + (1 - weights) * source])


def latent_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture's mask [H, W] bool at the latents' size: a latent may change if any of its pixels
    may.
    """
    return adaptive_max_pool2d(mask[None].float(), size)[0] > 0


def feathered(mask: Tensor, width: float) -> Tensor:
    """A mask [h, w] bool with a soft edge: float32 [h, w], or the mask itself for width 0.

    The mask under a Gaussian of standard deviation width / 2, cut off at `width` (rounded up to a
    whole place) and normalised: 1/2 on a straight edge, exactly 0 and 1 further away than that.
    """
    if width == 0:
        return mask
    reach = math.ceil(width)
    places = torch.arange(-reach, reach + 1, device=mask.device, dtype=torch.float32)
    kernel = torch.exp(-((places / (width / 2)) ** 2) / 2)
    kernel = kernel / kernel.sum()
    soft = mask[None, None].float()
    soft = conv2d(pad(soft, (reach, reach, 0, 0), mode="replicate"), kernel[None, None, None])
    soft = conv2d(pad(soft, (0, 0, reach, reach), mode="replicate"), kernel[None, None, :, None])
    near, far = _widened(mask, reach), _widened(~mask, reach)
    soft = torch.where(near, torch.where(far, soft, 1.0), 0.0)  # free of rounding
    return soft[0, 0].clamp(0, 1)


def _widened(mask: Tensor, reach: int) -> Tensor:
    """True within a square of `reach` places around what is, [1, 1, h, w] bool. By rows, then by
    columns: a square at once takes time by its area.
    """
    width = 2 * reach + 1
    rows = max_pool2d(mask[None, None].float(), (1, width), stride=1, padding=(0, reach))
    return max_pool2d(rows, (width, 1), stride=1, padding=(reach, 0)) > 0
