"""How good an inversion is, beside what the autoencoder alone would lose."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from pivotal.images import Pixels, psnr
from pivotal.schedule import NoiseLevel

Term = Literal["autoencoder", "inversion", "guidance"]


def squared_error(a: Pixels, b: Pixels) -> float:
    """Mean squared error on a scale where 1 is white; 0 for equal pictures."""
    return 10 ** (-psnr(a, b) / 10)


def dominant_error(
    source: Pixels, round_trip: Pixels, reconstruction: Pixels, unguided: Pixels | None = None
) -> Term | None:
    """Which term loses most: the autoencoder, the inversion, or guidance.

    round_trip: source encoded and decoded. reconstruction: inverted and sampled back at the
    guidance asked for. unguided: sampled back at guidance 1. All uint8 [H, W, 3]. The autoencoder's
    error is source to round trip; what follows is judged against the round trip. None where it is
    not the autoencoder, and `unguided` is not there to tell the other two apart.
    """
    whole = squared_error(round_trip, reconstruction)
    if whole <= squared_error(source, round_trip):
        return "autoencoder"
    if unguided is None:
        return None
    return "inversion" if squared_error(round_trip, unguided) > whole / 2 else "guidance"


def latents_psnr(source: Tensor, back: Tensor) -> float:
    """-10 log10 of the mean squared difference of latents [B, C, h, w], in float64; infinite for
    equal ones. Latents have no largest value: 0 dB is an error as large as their unit.
    """
    squares = float((back.cpu().double() - source.cpu().double()).square().mean())
    return math.inf if squares == 0 else -10 * math.log10(squares)


def noise_std_ratio(noise: Tensor, level: NoiseLevel) -> float:
    """Standard deviation of inverted noise over sigma_max, in sigma space; 1 is what sampling
    expects.

    noise: [B, C, h, w] at the noisiest level.
    """
    return float(noise.std()) / math.sqrt(1 - level.alpha_bar)
