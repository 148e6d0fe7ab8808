"""`--mask`: where an edit may change the picture, as a file, a box or a word of the prompt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from pivotal.images import Fitted, Pixels

_WORD = "word:"
_BOX = re.compile(r"box:(-?\d{1,6}),(-?\d{1,6}),(-?\d{1,6}),(-?\d{1,6})")


def mask_fields(text: str | None, fitted: Fitted) -> dict[str, Any]:
    """What of an `Edit` the option says. Raises ValueError for a text that means none."""
    if text is None:
        return {}
    if text.startswith(_WORD):
        word = text.removeprefix(_WORD).strip()
        if not word:
            raise ValueError(f"--mask {text!r}: name a word of the source's prompt, as word:cat")
        return {"mask_words": (word,)}
    return {"mask": read_mask(text, fitted)}


def read_mask(text: str, fitted: Fitted) -> Tensor:
    """A file or a box as a mask of the fitted source's own size: bool [H, W].

    It is where a picture is light, or inside a box in pixels of the source, which is fitted as the
    source was. Raises ValueError for one that leaves nothing to change.
    """
    import torch

    if text.startswith(_WORD):
        raise ValueError(f"--mask {text!r}: words say where in `pivotal edit`; here give a file")
    pixels = _box(text, fitted) if text.startswith("box:") else _file(Path(text), fitted)
    mask = torch.from_numpy(pixels.astype("int64").mean(axis=2) >= 128)
    if not bool(mask.any()):
        dark = "is nowhere inside what was kept of the source"
        if not text.startswith("box:"):
            dark = "is dark all over"
        raise ValueError(f"--mask {text!r} {dark}, so nothing could change")
    return mask


def _file(path: Path, fitted: Fitted) -> Pixels:
    """It has the source's size, or that of the fitted picture; the former follows the source."""
    from pivotal.images import read_image

    picture = read_image(path)
    if picture.size == fitted.size:
        return picture.pixels
    if picture.size != fitted.source_size:
        given, first, second = (
            f"{height}x{width}" for height, width in (picture.size, fitted.source_size, fitted.size)
        )
        raise ValueError(
            f"--mask {str(path)!r} is {given}; the source's {first} or the inversion's "
            f"{second} (height x width) is expected"
        )
    return fitted.follow(picture.pixels)


def _box(text: str, fitted: Fitted) -> Pixels:
    import numpy as np

    height, width = fitted.source_size
    match = _BOX.fullmatch(text.replace(" ", ""))
    corners = tuple(map(int, match.groups())) if match else (0, 0, 0, 0)
    left, top, right, bottom = corners
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(
            f"--mask {text!r}: write box:x0,y0,x1,y1, whole pixels from the top left inside the "
            f"source's {width} wide and {height} high"
        )
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top:bottom, left:right] = 255
    return fitted.follow(pixels)
