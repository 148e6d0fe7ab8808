"""What the engine hands back: pictures, and the figures that say how they came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from .editing.edit import Edit
from .editing.prompt_to_prompt import Touched
from .images import Pixels


@dataclass(frozen=True)
class Reconstruction:
    """An inversion sampled back. Pictures uint8 [H, W, 3]; decibels against the source picture.

    dominant_error: autoencoder, inversion or guidance; None where it was not looked into.
    """

    picture: Pixels
    round_trip: Pixels  # the autoencoder alone
    guidance_scale: float
    psnr: float
    vae_psnr: float
    dominant_error: str | None
    seconds: Mapping[str, float]
    unet_rows: int


@dataclass(frozen=True)
class Edited:
    """What an edit gives: pictures of the model's size, and how they came about.

    pictures: one uint8 [H, W, 3] each target. source: the source row, sampled back beside them.
    heat_maps: for each target, word to [mh, mw]. masks: for each target, where it was allowed
    to change (bool [H, W]), or None. outside_mask_psnr: decibels against the source outside that
    mask.
    """

    pictures: list[Pixels]
    source: Reconstruction
    edits: list[Edit]
    kinds: list[str]
    heat_maps: list[dict[str, Tensor]]
    masks: list[Tensor | None]
    outside_mask_psnr: list[float | None]
    touched: list[dict[str, Touched]]
    latents: Tensor  # [1 + T, C, h, w], source first
    seconds: Mapping[str, float]
    unet_rows: int

    @property
    def images(self) -> list[Image.Image]:
        return [Image.fromarray(pixels) for pixels in self.pictures]

    @property
    def reconstruction(self) -> Pixels:
        return self.source.picture
