"""LocalBlend: outside the edited words' regions the targets' latents are the source's.

Prompt-to-Prompt's "local editing" (Hertz et al. 2022, arXiv:2208.01626), as null-text inversion's
notebook ran it, with a mask from the words' own cross-attention maps.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LocalBlend:
    """`word_alpha [1+T, L]`: 1 at the tokens of each row's blend words, source first.

    `map_shape`: (height, width) of the layers that feed the mask; every cross-attention layer with
    height * width positions does. Acts from step `int(start * steps)`; maps count from step 0.
    `subtract_alpha [1+T, L]`: words whose region is taken out of the mask.
    """

    word_alpha: Tensor
    map_shape: tuple[int, int]
    threshold: float = 0.3
    subtract_alpha: Tensor | None = None
    subtract_threshold: float = 0.3
    start: float = 0.2

    @property
    def pixels(self) -> int:
        return self.map_shape[0] * self.map_shape[1]


def word_maps(maps: Tensor, word_alpha: Tensor, map_shape: tuple[int, int]) -> Tensor:
    """`[1+T, layers * heads, N, L]` -> `[1+T, 1, H, W]`: sum of words, mean over layers, heads."""
    words = (maps * word_alpha.to(maps)[:, None, None, :]).sum(-1).mean(1)  # [1 + T, N]
    return words.reshape(-1, 1, *map_shape)


def region(
    maps: Tensor,
    word_alpha: Tensor,
    threshold: float,
    map_shape: tuple[int, int],
    latent_shape: tuple[int, int],
    *,
    pool: bool,
) -> Tensor:
    """Where the words are: bool `[1+T, 1, h, w]`, each row joined with the source's region."""
    heat = word_maps(maps, word_alpha, map_shape)
    if pool:
        heat = F.max_pool2d(heat, kernel_size=3, stride=1, padding=1)
    heat = F.interpolate(heat, size=latent_shape, mode="nearest")
    heat = heat / heat.amax(dim=(2, 3), keepdim=True)
    mask = heat > threshold
    return mask[:1] | mask


def blend_mask(maps: Tensor, blend: LocalBlend, latent_shape: tuple[int, int]) -> Tensor:
    """bool `[1+T, 1, h, w]`: True where a target keeps its own latents."""
    shape = blend.map_shape
    mask = region(maps, blend.word_alpha, blend.threshold, shape, latent_shape, pool=True)
    if blend.subtract_alpha is not None:
        mask = mask & ~region(
            maps, blend.subtract_alpha, blend.subtract_threshold, shape, latent_shape, pool=False
        )
    return mask
