"""What the engine hands back: pictures, and the figures that say how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from .editing.edit import Edit
from .editing.prompt_to_prompt import Touched
from .images import Pixels, from_tensor

OutputType = Literal["pil", "np", "pt", "latent"]
Images = list[Image.Image] | npt.NDArray[np.float32] | Tensor


@dataclass(frozen=True)
class Reconstruction:
    """An inversion sampled back. Pictures uint8 [H, W, 3]; decibels against the source picture.

    dominant_error: autoencoder, inversion or guidance; None where it was not looked into. ran_on:
    the backend, its attention, and the UNet rows that overflowed meanwhile.
    """

    picture: Pixels
    round_trip: Pixels  # the autoencoder alone
    guidance_scale: float
    negative_prompt: str
    psnr: float
    vae_psnr: float
    dominant_error: str | None
    seconds: Mapping[str, float]
    unet_rows: int
    ran_on: Mapping[str, Any]

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(self.picture)

    def attributed(self, term: str | None) -> Reconstruction:
        return replace(self, dominant_error=term)


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
    ran_on: Mapping[str, Any]  # as a Reconstruction's

    @property
    def images(self) -> list[Image.Image]:
        return [Image.fromarray(pixels) for pixels in self.pictures]

    @property
    def reconstruction(self) -> Pixels:
        return self.source.picture

    @staticmethod
    def joined(parts: Sequence[Edited]) -> Edited:
        """Several batches of targets as one; the source is the first batch's."""

        def every(name: str) -> list[Any]:
            return [each for part in parts for each in getattr(part, name)]

        return Edited(
            pictures=every("pictures"),
            source=parts[0].source,
            edits=every("edits"),
            kinds=every("kinds"),
            heat_maps=every("heat_maps"),
            masks=every("masks"),
            outside_mask_psnr=every("outside_mask_psnr"),
            touched=every("touched"),
            latents=torch.cat([parts[0].latents[:1], *(part.latents[1:] for part in parts)]),
            seconds=parts[-1].seconds,
            unet_rows=sum(part.unet_rows for part in parts),
            ran_on=parts[-1].ran_on,
        )


@dataclass(frozen=True)
class Generated:
    """Pictures from text.

    images: as asked: PIL images; "np" float32 [B, H, W, 3] or "pt" float32 [B, 3, H, W], both in
    [0, 1]; or latents. pictures: uint8 [H, W, 3] each; none if latents were asked for. prompts,
    negative_prompt: None for what was given as embeddings. seeds: one for each prompt; None where
    generators were given or nothing was drawn. size: (height, width) in pixels. sampling: the
    sampler, its options, and the loss that guided it. ran_on: as a Reconstruction's.
    """

    images: Images
    pictures: list[Pixels]
    latents: Tensor  # [B, C, h, w] float32
    prompts: list[str | None]
    seeds: list[int] | None
    negative_prompt: str | None
    size: tuple[int, int]
    guidance_scale: float
    schedule: Mapping[str, Any]
    sampling: Mapping[str, Any]
    seconds: Mapping[str, float]
    unet_rows: int
    ran_on: Mapping[str, Any]


def check_output_type(output_type: str) -> None:
    """Raises ValueError."""
    if output_type not in get_args(OutputType):
        raise ValueError(
            f"output_type={output_type!r} is unknown; accepted are "
            f"{', '.join(get_args(OutputType))}"
        )


def as_output(images: Tensor, output_type: OutputType) -> Images:
    """Decoded images [B, 3, H, W] float32 in [-1, 1] as diffusers' "pil", "np" or "pt".

    The last two are not rounded to 8 bit. Raises ValueError for another type, "latent" too: a
    picture is no latent.
    """
    check_output_type(output_type)
    if output_type == "latent":
        raise ValueError("output_type='latent' is not possible for decoded pictures")
    if output_type == "pil":
        return [Image.fromarray(pixels) for pixels in from_tensor(images)]
    within = (images.cpu() / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return within
    channels_last: npt.NDArray[np.float32] = within.permute(0, 2, 3, 1).contiguous().numpy()
    return channels_last
