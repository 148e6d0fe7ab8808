"""A picture to a model's size, and a result back to the picture's."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from PIL import Image

from .pixels import Pixels, check_pixels, extent
from .reading import Picture
from .refusals import MAX_PIXELS

FitPolicy = Literal["crop", "pad", "stretch"]


@dataclass(frozen=True)
class Fitted:
    """A picture brought to a model's size, and what was done to it.

    `pixels` is read-only uint8 `[h, w, 3]`. `box` is the part of the source that was kept, in
    source pixels, and `inner` the part of the result that it fills, both (left, top, right,
    bottom). Cropping has the whole result as `inner`, padding the whole source as `box`.
    """

    pixels: Pixels = field(compare=False, repr=False)
    policy: FitPolicy
    source_size: tuple[int, int]
    box: tuple[int, int, int, int]
    inner: tuple[int, int, int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the fitted picture."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def unfit(self, pixels: Pixels) -> Pixels:
        """Bring a result of the fitted size back to the source's scale.

        Padding is cut away and stretching undone, so the answer has the source's size. What
        cropping cut off is not in the result, so there the answer has the size of `box`.
        """
        check_pixels(pixels)
        if pixels.shape[:2] != self.size:
            raise ValueError(
                f"a result of {extent(pixels.shape[:2])} can't be brought back: the picture was "
                f"fitted to {extent(self.size)}"
            )
        left, top, right, bottom = self.box
        return _resize(_cut(pixels, self.inner), (bottom - top, right - left))


def fit(picture: Picture, size: tuple[int, int], policy: FitPolicy = "crop") -> Fitted:
    """Bring a picture to a model's size (height, width), antialiased (Lanczos).

    `crop` cuts the centre out in the wanted aspect, `pad` keeps all and repeats the edges,
    `stretch` changes the aspect. A picture that has the size already is not touched.
    Raises ValueError for an unknown policy or an impossible size.
    """
    if policy not in get_args(FitPolicy):
        raise ValueError(f"fit policy {policy!r} is unknown: give one of {get_args(FitPolicy)}")
    if len(size) != 2 or min(size) < 1 or math.prod(size) > MAX_PIXELS:
        raise ValueError(
            f"can't fit to {size}: give (height, width) of at most {MAX_PIXELS} pixels"
        )
    (height, width), (source_height, source_width) = size, picture.size
    box = (0, 0, source_width, source_height)
    inner = (0, 0, width, height)
    if policy == "crop":
        scale = min(source_height / height, source_width / width)
        box = _centred((source_height, source_width), height * scale, width * scale)
    if policy == "pad":
        scale = min(height / source_height, width / source_width)
        inner = _centred(size, source_height * scale, source_width * scale)
    left, top, right, bottom = inner
    pixels = _resize(_cut(picture.pixels, box), (bottom - top, right - left))
    margins = ((top, height - bottom), (left, width - right), (0, 0))
    pixels = np.pad(pixels, margins, mode="edge")
    pixels.flags.writeable = False
    return Fitted(pixels, policy, picture.size, box, inner)


def _centred(within: tuple[int, int], height: float, width: float) -> tuple[int, int, int, int]:
    rows = min(max(round(height), 1), within[0])
    columns = min(max(round(width), 1), within[1])
    top, left = (within[0] - rows) // 2, (within[1] - columns) // 2
    return left, top, left + columns, top + rows


def _cut(pixels: Pixels, box: tuple[int, int, int, int]) -> Pixels:
    left, top, right, bottom = box
    return pixels[top:bottom, left:right]


def _resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    if pixels.shape[:2] == size:
        return pixels.copy()
    resized = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return np.array(resized, dtype=np.uint8)
