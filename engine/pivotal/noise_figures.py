"""How far inverted noise is from noise: what `compare` reports of each method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .inversion.noise_likeness import autocorrelation
from .quality import noise_std_ratio
from .schedule import NoiseLevel


@dataclass(frozen=True)
class NoiseFigures:
    """Of latents [1, C, h, w] at the noisiest level.

    mean: of all values, over the deviation that noise has there. std_ratio: standard deviation over
    sigma_max, in sigma space. normality: the largest distance between the distribution of the
    standardised values and the normal one (Kolmogorov and Smirnov's; 0 is normal, 1 the most).
    autocorrelation: root mean square, over channels, of the correlation with the neighbour below
    and to the right; 0 to 1.
    """

    mean: float
    std_ratio: float
    normality: float
    autocorrelation: float


def noise_figures(noise: Tensor, level: NoiseLevel) -> NoiseFigures:
    """Computed in float64. noise: [1, C, h, w] at `level`."""
    values = noise.detach().cpu().double()
    centred = values - values.mean(dim=(2, 3), keepdim=True)
    deviation = centred.square().mean(dim=(2, 3), keepdim=True).sqrt()
    squares = autocorrelation(centred / deviation.clamp(min=1e-12), [(1, 1)])  # both neighbours'
    return NoiseFigures(
        mean=float(values.mean()) / math.sqrt(1 - level.alpha_bar),
        std_ratio=noise_std_ratio(values, level),
        normality=normal_distance(values),
        autocorrelation=math.sqrt(float(squares.mean()) / (2 * values.shape[1])),
    )


def normal_distance(values: Tensor) -> float:
    """Kolmogorov and Smirnov's distance of values, standardised by their own mean and deviation,
    from the standard normal distribution; Lilliefors 1967.
    """
    ordered = values.flatten().sort().values
    count = len(ordered)
    deviation = float(ordered.std())
    if deviation == 0:
        return 1.0
    expected = torch.special.ndtr((ordered - ordered.mean()) / deviation)
    above = torch.arange(1, count + 1, dtype=torch.float64) / count
    return float(torch.maximum(above - expected, expected - above + 1 / count).max())


def figures_of_fresh_noise(shape: Sequence[int], level: NoiseLevel) -> NoiseFigures:
    """Of noise that was drawn: what the figures of so few values can be at best."""
    drawn = torch.randn(
        tuple(shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    return noise_figures(drawn * math.sqrt(1 - level.alpha_bar), level)
