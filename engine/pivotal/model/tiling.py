"""Large pictures through an autoencoder in tiles, so that memory does not grow with the picture.

A tile alone is normalised by its own statistics, which shifts its colours. So every group
normalisation takes those of the whole picture: averaged over the tiles of a first pass, in which
each tile still has its own, and again over those of a second. What is left of the difference comes
from attention in the middle, which sees its tile alone, and from how far a convolution sees beyond
the overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TILE, OVERLAP = 64, 16
"""Latents along a side of a tile, and those that it shares with its neighbour."""
_PASSES = 2  # of estimating statistics

Network = Callable[[Tensor], Tensor]


@dataclass
class _Moments:
    """Of the groups of one normalisation: float64 sums over tiles, [B, groups]."""

    mean: Tensor
    square: Tensor
    elements: int


def tiled(
    network: nn.Module, run: Network, inputs: Tensor, scale_in: int, scale_out: int
) -> Tensor:
    """`run(inputs)` [B, C, h, w] put together from tiles, whose overlaps are blended linearly.

    network: whose group normalisations are shared. scale_in, scale_out: places of inputs and
    outputs per latent, along a side.
    """
    height, width = (side // scale_in for side in inputs.shape[-2:])
    places = [(top, left) for top in _starts(height) for left in _starts(width)]

    def tile_of(place: tuple[int, int]) -> Tensor:
        top, left = (start * scale_in for start in place)
        side = TILE * scale_in
        return inputs[..., top : top + side, left : left + side]

    shared: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = {}
    for _ in range(_PASSES):
        moments: dict[nn.GroupNorm, _Moments] = {}
        with torch.no_grad(), _normalised(network, shared, moments):
            for place in places:
                run(tile_of(place))
        shared = {norm: _statistics(found) for norm, found in moments.items()}
    total: Tensor | None = None
    with _normalised(network, shared, None):
        for top, left in places:
            made = run(tile_of((top, left)))
            if total is None:
                shape = (*made.shape[:2], height * scale_out, width * scale_out)
                total, weights = made.new_zeros(shape), made.new_zeros(shape[-2:])
            share = _ramp(made.shape[-2], scale_out, top > 0, top + TILE < height).to(made)
            across = _ramp(made.shape[-1], scale_out, left > 0, left + TILE < width).to(made)
            share = share[:, None] * across
            y, x = top * scale_out, left * scale_out
            window = (..., slice(y, y + made.shape[-2]), slice(x, x + made.shape[-1]))
            total[window] += made * share
            weights[window] += share
    assert total is not None
    return total / weights


def _starts(side: int) -> list[int]:
    """Where tiles begin, the last one so that it ends with the side."""
    if side <= TILE:
        return [0]
    return [*range(0, side - TILE, TILE - OVERLAP), side - TILE]


def _ramp(length: int, scale: int, before: bool, after: bool) -> Tensor:
    """A tile's weights along a side, [length]: rising over the overlap where it has a neighbour.

    The outer quarter of the overlap is left out: convolutions saw the tile's end there.
    """
    weights = torch.ones(length)
    edge, out = OVERLAP * scale, OVERLAP * scale // 4
    rise = ((torch.arange(edge) - out + 0.5) / (edge - 2 * out)).clamp(1e-6, 1)
    if before:
        weights[:edge] *= rise
    if after:
        weights[-edge:] *= rise.flip(0)
    return weights


def _statistics(found: _Moments) -> tuple[Tensor, Tensor]:
    mean = found.mean / found.elements
    return mean, (found.square / found.elements - mean**2).clamp(min=0)


@contextmanager
def _normalised(
    network: nn.Module,
    shared: dict[nn.GroupNorm, tuple[Tensor, Tensor]],
    moments: dict[nn.GroupNorm, _Moments] | None,
) -> Iterator[None]:
    """Group normalisations with shared statistics; moments: where those of tiles are summed."""

    def normalise(norm: nn.GroupNorm, given: tuple[Tensor], out: Tensor) -> Tensor | None:
        values = given[0]
        if moments is not None:
            _add(moments, norm, values)
        if norm not in shared:
            return None
        mean, variance = shared[norm]
        grouped = values.unflatten(1, (norm.num_groups, -1))
        broadcast = (..., *([None] * (grouped.ndim - 2)))
        deviation = (variance + norm.eps).sqrt()
        grouped = (grouped - mean.to(values)[broadcast]) / deviation.to(values)[broadcast]
        channels = (1, -1, *([1] * (values.ndim - 2)))
        scaled: Tensor = grouped.flatten(1, 2) * norm.weight.view(channels)
        return scaled + norm.bias.view(channels)

    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    handles = [norm.register_forward_hook(normalise) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(moments: dict[nn.GroupNorm, _Moments], norm: nn.GroupNorm, values: Tensor) -> None:
    grouped = values.unflatten(1, (norm.num_groups, -1)).flatten(2).double()
    found = _Moments(grouped.sum(-1), grouped.square().sum(-1), grouped.shape[-1])
    if norm in moments:
        before = moments[norm]
        found = _Moments(
            before.mean + found.mean,
            before.square + found.square,
            before.elements + found.elements,
        )
    moments[norm] = found
