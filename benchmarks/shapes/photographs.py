"""Crops of the public-domain pictures inside the scikit-image wheel, for the autoencoder.

The cat (chelsea.png, CC0) is never used here: it is the photograph of the demo.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage
from numpy.typing import NDArray
from PIL import Image as Pictures

HELD_OUT = "chelsea.png"
COLOURED = ("astronaut.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg")
GRAY = ("camera.png", "clock_motion.png", "moon.png", "brick.png", "grass.png", "gravel.png")


def picture_folder() -> Path:
    """Where the installed scikit-image keeps its pictures."""
    return Path(skimage.__file__).parent / "data"


def load_pyramids() -> list[list[NDArray[np.uint8]]]:
    """Each picture at widths halved down to about 90 pixels, the coloured ones four times over."""
    pyramids = []
    for name in COLOURED * 4 + GRAY:
        picture = Pictures.open(picture_folder() / name).convert("RGB")
        levels = []
        while min(picture.size) >= 90:
            levels.append(np.asarray(picture))
            picture = picture.resize(
                (picture.width * 2 // 3, picture.height * 2 // 3), Pictures.Resampling.LANCZOS
            )
        levels.append(np.asarray(picture))
        pyramids.append(levels)
    return pyramids


def sample_crop(
    rng: np.random.Generator, pyramids: list[list[NDArray[np.uint8]]], side: int = 64
) -> NDArray[np.uint8]:
    """A random crop uint8 [side, side, 3]; flipped, and its colours permuted, half of the time."""
    levels = pyramids[int(rng.integers(len(pyramids)))]
    picture = levels[int(rng.integers(len(levels)))]
    top = int(rng.integers(picture.shape[0] - side + 1))
    left = int(rng.integers(picture.shape[1] - side + 1))
    crop = picture[top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.5:
        crop = crop[..., rng.permutation(3)]
    return crop


def held_out_photograph(side: int = 64) -> NDArray[np.uint8]:
    """The held-out cat, its middle square at a given side, uint8 [side, side, 3]."""
    picture = Pictures.open(picture_folder() / HELD_OUT).convert("RGB")
    edge = min(picture.size)
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    square = picture.crop((left, top, left + edge, top + edge))
    return np.asarray(square.resize((side, side), Pictures.Resampling.LANCZOS))
