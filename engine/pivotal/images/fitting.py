"""A picture to a model's size, and a result back to the picture's."""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .pixels import Pixels, check_pixels, extent
from .reading import Picture
from .sizes import FitPolicy, Size, model_size


@dataclass(frozen=True)
class Fitted:
    """A picture brought to a model's size, and what was done to it.

    `pixels` is read-only uint8 `[h, w, 3]`. `box` is the part of the source that was kept, in
    source pixels, and `inner` the part of the result that it fills, both (left, top, right,
    bottom). Cropping has the whole result as `inner`, padding the whole source as `box`; fitting
    and stretching have both.
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

    @property
    def time_ids(self) -> tuple[int, int, int, int, int, int]:
        """What SDXL is told of a picture: height and width of the whole, top and left of the part,
        its height and width; all at the result's scale. Only cropping makes a part of it.
        """
        height, width = self.size
        if self.policy != "crop":
            return height, width, 0, 0, height, width
        left, top, right, bottom = self.box
        down, across = height / (bottom - top), width / (right - left)
        whole = round(self.source_size[0] * down), round(self.source_size[1] * across)
        return *whole, round(top * down), round(left * across), height, width

    def unfit(self, pixels: Pixels) -> Pixels:
        """Bring a result of the fitted size back to the source's scale.

        Padding is cut away, and fitting and stretching undone, so the answer has the source's
        size. What cropping cut off is not in the result, so there the answer has the size of `box`.
        """
        check_pixels(pixels)
        if pixels.shape[:2] != self.size:
            raise ValueError(
                f"a result of {extent(pixels.shape[:2])} can't be brought back: the picture was "
                f"fitted to {extent(self.size)}"
            )
        left, top, right, bottom = self.box
        return _resize(_cut(pixels, self.inner), (bottom - top, right - left))

    def follow(self, pixels: Pixels) -> Pixels:
        """Do to another picture of the source's size, such as a mask, what was done to it."""
        check_pixels(pixels)
        if pixels.shape[:2] != self.source_size:
            raise ValueError(
                f"a picture of {extent(pixels.shape[:2])} can't follow: the one that was fitted "
                f"had {extent(self.source_size)}"
            )
        return _fitted(pixels, self.size, self.box, self.inner)


def fit(picture: Picture, size: Size, policy: FitPolicy = "fit", *, multiple: int = 1) -> Fitted:
    """Bring a picture to a model's size (height, width), antialiased (Lanczos).

    `fit` keeps all and nearly its aspect, at as many pixels as `size` has; `crop` cuts the centre
    out in the wanted aspect, `pad` keeps all and repeats the edges, `stretch` changes the aspect.
    What "source" and `multiple` mean, and what is raised, says `model_size`. A picture that has
    the size already is not touched.
    """
    height, width = size = model_size(picture.size, size, policy, multiple)
    source_height, source_width = picture.size
    box = (0, 0, source_width, source_height)
    inner = (0, 0, width, height)
    if policy == "crop":
        scale = min(source_height / height, source_width / width)
        if max(source_height - height, source_width - width) < multiple:
            scale = min(scale, 1.0)  # down to the multiple: nothing is resampled
        box = _centred((source_height, source_width), height * scale, width * scale)
    if policy == "pad":
        scale = min(height / source_height, width / source_width)
        if max(height - source_height, width - source_width) < multiple:
            scale = min(scale, 1.0)  # a margin up to the next multiple: nothing is resampled
        inner = _centred(size, source_height * scale, source_width * scale)
    pixels = _fitted(picture.pixels, size, box, inner)
    pixels.flags.writeable = False
    return Fitted(pixels, policy, picture.size, box, inner)


def _fitted(
    pixels: Pixels,
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    inner: tuple[int, int, int, int],
) -> Pixels:
    left, top, right, bottom = inner
    pixels = _resize(_cut(pixels, box), (bottom - top, right - left))
    margins = ((top, size[0] - bottom), (left, size[1] - right), (0, 0))
    return np.pad(pixels, margins, mode="edge")


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
