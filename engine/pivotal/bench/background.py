"""How much of a picture stayed as it was: figures over chosen pixels alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pivotal.images import Pixels


def masked_psnr(
    source: Pixels, picture: Pixels, where: NDArray[np.bool_] | None, most: float = 60.0
) -> float:
    """Decibels over the chosen pixels alone; NaN where there are none. At most `most`: equal pixels
    would be infinite.
    """
    from skimage.metrics import peak_signal_noise_ratio

    if where is None or not where.any():
        return math.nan
    if np.array_equal(source[where], picture[where]):
        return most
    found = peak_signal_noise_ratio(source[where], picture[where], data_range=255)
    return min(float(found), most)


def masked_ssim(source: Pixels, picture: Pixels, where: NDArray[np.bool_] | None) -> float:
    """Mean of the SSIM map over the chosen pixels; windows (7 x 7) reach past their edge."""
    from skimage.metrics import structural_similarity

    if where is None or not where.any():
        return math.nan
    _, similarity = structural_similarity(
        source, picture, channel_axis=2, data_range=255, full=True
    )
    return float(similarity[where].mean())
