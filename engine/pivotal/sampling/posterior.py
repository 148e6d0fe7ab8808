"""A step down with fresh noise: DDIM with eta, from 0 (deterministic) to 1 (DDPM).

Song et al. 2020 (arXiv:2010.02502), Eq. 12 and 16.
"""

from __future__ import annotations

import math

from torch import Tensor

from pivotal.query import Noise
from pivotal.schedule import NoiseLevel


def posterior_std(high: NoiseLevel, low: NoiseLevel, eta: float) -> float:
    """Eq. 16: the fresh noise's standard deviation. At eta 1 it is DDPM's posterior's."""
    if high.alpha_bar == low.alpha_bar:
        return 0.0
    share = (1 - low.alpha_bar) / (1 - high.alpha_bar)
    return eta * math.sqrt(share * (1 - high.alpha_bar / low.alpha_bar))


def posterior_mean(noise: Noise, low: NoiseLevel, std: float) -> Tensor:
    """Eq. 12 without its random part: `sqrt(ab) x0 + sqrt(1 - ab - std^2) eps`, [B, C, h, w]."""
    kept = math.sqrt(max(1 - low.alpha_bar - std * std, 0.0))
    return math.sqrt(low.alpha_bar) * noise.x0 + kept * noise.eps
