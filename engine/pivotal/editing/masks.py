"""Where an edit may change the picture, at the picture's own size, and what is put back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pivotal.attention_routes import AttentionRoutes
from pivotal.errors import EditWithoutEffectError
from pivotal.images import Pixels
from pivotal.tokens import Tokens

from .blend import feathered, word_mask
from .edit import Edit
from .routes import WORD_COLUMNS, Layers


def pixel_weights(region: Tensor, edit: Edit, size: tuple[int, int]) -> Tensor:
    """The target's share of each pixel, from the latents' region [h, w] bool: [H, W], bool, or
    float32 where the edit is feathered.

    A mask of the user bounds it to the pixel, unless it is joined to a blend.
    """
    wide = _enlarged(region, size)
    if edit.mask is not None and edit.mask_with_blend == "and":
        wide = wide & edit.mask.cpu()
    return feathered(wide, edit.feather)


def allowed_pixels(region: Tensor, edit: Edit, size: tuple[int, int]) -> Tensor:
    """Where anything of the target may show, feathers included: bool [H, W].

    Pixel for pixel where they are put back; otherwise latent by latent, as the latents are.
    """
    if edit.preserve == "pixel":
        return pixel_weights(region, edit, size) > 0
    scale = size[0] // region.shape[0]
    return _enlarged(feathered(region, edit.feather / scale) > 0, size)


def put_back(source: Pixels, edited: Pixels, weights: Tensor) -> Pixels:
    """The edited picture, uint8 [H, W, 3], with the source's pixels where weights [H, W] are 0."""
    share = weights.numpy().astype(np.float32)[..., None]
    mixed = share * edited.astype(np.float32) + (1 - share) * source.astype(np.float32)
    rounded: Pixels = np.rint(mixed).astype(np.uint8)
    return rounded


class WordMaps:
    """A control that edits nothing and sums up the attention of a source's words, [1, K, mh, mw].

    groups: of words; each group's attention is one map. Raises ValueError for a word that the
    source has not, and for more groups than the capacity for word maps.
    """

    def __init__(self, source: Tokens, groups: list[tuple[str, ...]], layers: Layers) -> None:
        if len(groups) > WORD_COLUMNS:
            raise ValueError(
                f"{len(groups)} different masks of words; at most {WORD_COLUMNS} are possible in "
                "one call"
            )
        self.maps: Tensor | None = None
        self._layers = layers
        self._columns = torch.zeros(1, len(source.ids), WORD_COLUMNS)
        for column, words in enumerate(groups):
            for word in words:
                self._columns[0, list(source.find(word)), column] = 1

    def routes(self, step: int) -> AttentionRoutes:
        _, length, count = self._columns.shape
        layers = self._layers
        made = AttentionRoutes.identity(
            1, length, count, len(layers.self_downscales), len(layers.cross_downscales)
        )
        made.words.copy_(self._columns)
        return made

    def after_step(self, step: int, latents: Tensor, word_maps: Tensor | None) -> Tensor:
        if word_maps is None:
            raise EditWithoutEffectError("the network returned no word maps for a routed step")
        self.maps = word_maps if self.maps is None else self.maps + word_maps
        return latents

    def sources(self, rows: int) -> Tensor:
        return torch.arange(rows)

    def takes_fitted_null(self, step: int, rows: int) -> Tensor:
        return torch.ones(rows, dtype=torch.bool)

    def mask(self, group: int, latents: tuple[int, int], threshold: float) -> Tensor:
        """Where a group's words look, at the latents' size: bool [h, w], on the CPU."""
        assert self.maps is not None, "read after the replay"
        return word_mask(self.maps[:, group], latents, threshold, pool=True)[0].cpu()


def _enlarged(region: Tensor, size: tuple[int, int]) -> Tensor:
    wide = interpolate(region[None, None].float().cpu(), size=size, mode="nearest")
    return wide[0, 0] > 0
