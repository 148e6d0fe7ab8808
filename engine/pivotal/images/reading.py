"""Whatever a person gives becomes one `Picture`, or one clear sentence."""

import hashlib
import logging
import os
import re
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError

from .decoding import decode, has_more_frames
from .pixels import Pixels
from .refusals import READABLE, damaged, foreign_format, quoted, too_large
from .samples import channels_last, from_samples

logger = logging.getLogger(__name__)
ImageSource = str | Path | bytes | Image.Image | npt.NDArray[np.generic] | torch.Tensor
_DECODERS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


@dataclass(frozen=True)
class Picture:
    """An image from outside, decoded once. Two pictures are equal when their pixels and names are.

    `pixels` is read-only uint8 RGB `[H, W, 3]`; `digest` is the SHA-256 (hex) of pixels and shape;
    `name` is the file's name, or what was given instead of a file.
    """

    pixels: Pixels = field(compare=False, repr=False)
    digest: str
    name: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def read_image(source: ImageSource) -> Picture:
    """Decode a file, encoded bytes, a PIL image, an array or a tensor to upright sRGB.

    EXIF rotation and ICC profiles are applied, transparency is composited on `BACKGROUND`, 16-bit
    samples are scaled, and of an animation the first frame is taken, with a logged warning.
    Arrays are `[H, W, 3]`, tensors `[3, H, W]` or `[1, 3, H, W]`: uint8, or floats in [0, 1].
    No URL is fetched.

    Raises ValueError, in one sentence that names the source, for whatever can't be read.
    """
    match source:
        case str() | Path():
            pixels, name = _read_file(source), Path(source).name
        case bytes():
            name = "the image given as bytes"
            pixels = _read_stream(BytesIO(source), len(source), name)
        case Image.Image():
            name = Path(str(getattr(source, "filename", "") or "image")).name
            pixels = decode(source, name)
        case np.ndarray():
            name = "array"
            pixels = from_samples(source, name, "[H, W, 3]")
        case torch.Tensor():
            name = "tensor"
            pixels = from_samples(channels_last(source), name, "[3, H, W] or [1, 3, H, W]")
        case _:
            raise ValueError(
                f"can't read an image from type {type(source).__name__}: give a path, bytes, a PIL "
                f"image, a numpy array or a torch tensor"
            )
    pixels = np.ascontiguousarray(pixels)
    pixels.flags.writeable = False
    height, width, _ = pixels.shape
    digest = hashlib.sha256(f"{height}x{width}x3 uint8 RGB\n".encode())
    digest.update(pixels.data)
    return Picture(pixels, digest.hexdigest(), name)


def _read_file(source: str | Path) -> Pixels:
    name = quoted(source)
    if isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]*://|data:", source, re.IGNORECASE):
        raise ValueError(f"{name} is a URL, and none is fetched: download it and give the file")
    try:
        path = Path(source)
        if not path.exists():
            raise ValueError(f"{name} does not exist: give the path of an image file")
        if not path.is_file():
            raise ValueError(f"{name} is not a file: give the path of an image file")
        with path.open("rb") as stream:
            return _read_stream(stream, os.fstat(stream.fileno()).st_size, name)
    except OSError as error:
        raise ValueError(f"{name} can't be opened: {error.strerror or error}") from error


def _read_stream(stream: BinaryIO, length: int, name: str) -> Pixels:
    if length == 0:
        raise ValueError(f"{name} is empty (0 bytes): give an image in {READABLE}")
    try:
        image = Image.open(stream, formats=_DECODERS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large(name) from error
    except UnidentifiedImageError as error:
        stream.seek(0)
        what = foreign_format(stream.read(32)) or "not an image, or damaged at its start"
        raise ValueError(
            f"{name} can't be read, as it is {what}: accepted are {READABLE}"
        ) from error
    except Exception as error:  # a decoder may raise anything on malformed bytes
        raise damaged(name, error) from error
    with image:
        pixels = decode(image, name)
        if has_more_frames(image):
            logger.warning("%s has several frames or pages; only the first is read", name)
        return pixels
