"""Which term dominates, on errors made by hand."""

import math

import numpy as np
import pytest
import torch

from pivotal.quality import dominant_error, latents_psnr, noise_std_ratio
from pivotal.schedule import NoiseLevel

GREY = np.full((8, 8, 3), 100, np.uint8)


@pytest.mark.parametrize(
    ("autoencoder", "guided", "unguided", "term"),
    [
        (5, 2, None, "autoencoder"),
        (0, 0, None, "autoencoder"),
        (2, 9, None, None),
        (2, 9, 1, "guidance"),
        (2, 9, 8, "inversion"),
        (2, 9, 9, "inversion"),
    ],
)
def test_the_largest_error_is_named(autoencoder, guided, unguided, term):
    round_trip = GREY + np.uint8(autoencoder)
    back = None if unguided is None else round_trip + np.uint8(unguided)
    assert dominant_error(GREY, round_trip, round_trip + np.uint8(guided), back) == term


def test_gaussian_noise_has_a_ratio_near_one_at_the_noisiest_level():
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    level = NoiseLevel(0.0047, 981.0)
    assert noise_std_ratio(noise, level) == pytest.approx(1 / np.sqrt(1 - 0.0047), rel=0.02)


def test_a_latents_error_of_a_tenth_everywhere_is_twenty_decibels():
    latents = torch.randn(1, 4, 5, 7, dtype=torch.float64)
    assert latents_psnr(latents, latents + 0.1) == pytest.approx(20)
    assert latents_psnr(latents.float(), latents.float()) == math.inf
