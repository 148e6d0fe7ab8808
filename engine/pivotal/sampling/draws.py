"""Fresh noise for samplers that draw: a generator for each row, so that company changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Draw = Callable[[int, Tensor], Tensor]
"""(step, latents [R, C, h, w]) to fresh noise of their shape and dtype."""


def no_draw(step: int, latents: Tensor) -> Tensor:
    """For samplers that draw nothing. Raises ValueError where one does."""
    raise ValueError("fresh noise needs a source, draw=")


def drawn_from(generators: torch.Generator | Sequence[torch.Generator]) -> Draw:
    """Fresh noise from one generator for all rows at once, or from one for each row, as diffusers
    draws it. Generators go on from where they are: what drew the first noise draws the rest.
    """

    def draw(step: int, latents: Tensor) -> Tensor:
        if isinstance(generators, torch.Generator):
            return _normal(latents.shape, generators, latents)
        if latents.shape[0] != len(generators):
            raise ValueError(f"{len(generators)} generators for {latents.shape[0]} rows of latents")
        return torch.stack([_normal(latents.shape[1:], each, latents) for each in generators])

    return draw


def seeded(seeds: Sequence[int]) -> Draw:
    """Fresh noise with a new generator for each row. Equal seeds give rows equal noise: an edit's
    source and targets share theirs.
    """
    return drawn_from([torch.Generator().manual_seed(seed) for seed in seeds])


def _normal(shape: Sequence[int], generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype).to(
        like.device
    )
