"""Numbers as pictures: latents, and where a word looks."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pivotal.errors import NonFiniteError
from pivotal.images import Pixels, check_pixels

ColourMap = Literal["inferno", "viridis"]
FloatArray = npt.NDArray[np.floating]

# Ten evenly spaced colours of matplotlib's perceptually uniform maps (CC0).
_ANCHORS: dict[str, str] = {
    "inferno": "000004 1b0c42 4b0c6b 781c6d a52c60 cf4446 ed6925 fb9a06 f7d03c fcffa4",
    "viridis": "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
}

_LOW, _HIGH = 1.0, 99.0  # percent: a few extreme latents must not grey out the rest
_GREYED = 0.65  # the rest keeps its colour, or shapes of one lightness would vanish
_COOL_SHARE, _HOT_SHARE = 0.45, 0.8  # of the blend; the greyed picture has the rest


def latents_as_picture(latents: torch.Tensor) -> Pixels:
    """Latents `[C, h, w]` as uint8 `[h, w, 3]`: a false-colour view, for any model.

    The first three channels become red, green and blue, each stretched between its 1st and 99th
    percentile; a constant or missing channel is mid-grey. One channel gives a grey picture.
    (Linear maps to true colours exist, for one autoencoder each.) Raises ValueError for another
    shape, NonFiniteError for NaN or infinity.
    """
    if latents.ndim != 3 or 0 in latents.shape:
        raise ValueError(f"latents have shape {list(latents.shape)}: give one image, [C, h, w]")
    values = latents.detach().float().cpu().numpy()
    if not np.isfinite(values).all():
        raise NonFiniteError("latents hold NaN or infinity and can't be shown")
    channels = [_stretched(channel) for channel in values[:3]]
    if len(channels) == 1:
        channels *= 3
    if len(channels) == 2:
        channels.append(np.full_like(channels[0], 0.5))
    return _levels(np.stack(channels, axis=-1))


def heat_map(
    word_map: torch.Tensor | FloatArray, picture: Pixels, colours: ColourMap = "inferno"
) -> Pixels:
    """Where a word looks: its attention `[mh, mw]` over the greyed picture, uint8 `[H, W, 3]`.

    The map is stretched to its own minimum and maximum and bicubically enlarged, so colours
    compare places, not words. A flat map shows its lowest colour. Raises ValueError for another
    shape, NonFiniteError for NaN or infinity.
    """
    check_pixels(picture)
    values = _as_float(word_map)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"word map has shape {list(values.shape)}: give one word's, [mh, mw]")
    if not np.isfinite(values).all():
        raise NonFiniteError("word map holds NaN or infinity and can't be shown")
    low, high = values.min(), values.max()
    heat = (values - low) / (high - low) if high > low else np.zeros_like(values)
    height, width, _ = picture.shape
    enlarged = Image.fromarray(heat).resize((width, height), Image.Resampling.BICUBIC)
    heat = np.asarray(enlarged).clip(0, 1)
    tint = colour_map(heat, colours).astype(np.float32)
    grey = np.asarray(Image.fromarray(picture).convert("L"), dtype=np.float32)[..., None]
    ground = _GREYED * grey + (1 - _GREYED) * picture.astype(np.float32)
    share = (_COOL_SHARE + (_HOT_SHARE - _COOL_SHARE) * heat)[..., None]
    return _levels((share * tint + (1 - share) * ground) / 255)


def colour_map(values: FloatArray, colours: ColourMap = "inferno") -> Pixels:
    """Values in [0, 1], any shape, to uint8 `[..., 3]` in a perceptually uniform colour map."""
    if colours not in _ANCHORS:
        raise ValueError(f"colour map {colours!r} is unknown: give one of {tuple(_ANCHORS)}")
    anchors = np.array([list(bytes.fromhex(code)) for code in _ANCHORS[colours].split()])
    stops = np.linspace(0, 1, len(anchors))
    channels = [np.interp(values, stops, anchors[:, channel]) for channel in range(3)]
    return _levels(np.stack(channels, axis=-1) / 255)


def _as_float(values: torch.Tensor | FloatArray) -> npt.NDArray[np.float32]:
    if isinstance(values, torch.Tensor):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, dtype=np.float32)


def _stretched(channel: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    low, high = np.percentile(channel, (_LOW, _HIGH))
    if high <= low:
        return np.full_like(channel, 0.5)
    stretched: npt.NDArray[np.float32] = ((channel - low) / (high - low)).astype(np.float32)
    return stretched


def _levels(values: FloatArray) -> Pixels:
    return np.rint(values * 255).clip(0, 255).astype(np.uint8)
