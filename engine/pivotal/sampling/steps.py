"""Steps between noise levels, as free functions over tensors. One DDIM for both directions.

Coefficients are computed in float64 from the table and applied in the latents' dtype (float32;
float64 where an exact method asks for it). The formulas of DDIM, guidance and eps and x0 stand in
the kernels' reference, which the fused ops are held to: there is one of each.
"""

from __future__ import annotations

import math

from torch import Tensor

from pivotal.query import Noise
from pivotal.schedule import NoiseLevel, PredictionType
from pivotal_kernels.guided_step import reference


def ddim_step(noise: Noise, to: NoiseLevel) -> Tensor:
    """DDIM to a noise level, up or down: `sqrt(ab) x0 + sqrt(1 - ab) eps`.

    Eq. 12 of Song et al. 2020 (arXiv:2010.02502) with eta 0. Returns latents [B, C, h, w].
    """
    return reference.ddim_step(noise.eps, noise.x0, to.alpha_bar)


def ddim_coefficients(high: NoiseLevel, low: NoiseLevel) -> tuple[float, float]:
    """(a, b) with `ddim_step = a z + b eps` from `high` to `low`. Undefined at zero terminal SNR.

    Raises ValueError if high.alpha_bar is 0: x0 can't be had from eps there.
    """
    if high.alpha_bar == 0:
        raise ValueError("at zero terminal SNR a step can't be written with eps alone")
    a = math.sqrt(low.alpha_bar / high.alpha_bar)
    b = math.sqrt(1 - low.alpha_bar) - a * math.sqrt(1 - high.alpha_bar)
    return a, b


def guide(uncond: Noise, cond: Noise, guidance_scale: float) -> Noise:
    """Classifier-free guidance, eps_u + w (eps_c - eps_u), and x0 likewise (arXiv:2207.12598, Eq.
    6).
    """
    return Noise(
        eps=reference.guide(uncond.eps, cond.eps, guidance_scale),
        x0=reference.guide(uncond.x0, cond.x0, guidance_scale),
        word_maps=cond.word_maps,
    )


def eps_and_x0(
    prediction: Tensor, latents: Tensor, alpha_bar: Tensor, prediction_type: PredictionType
) -> tuple[Tensor, Tensor]:
    """eps and x0 from what the network predicts, `z = sqrt(ab) x0 + sqrt(1 - ab) eps`.

    prediction, latents: [B, C, h, w]; alpha_bar: [B] float64. v is `sqrt(ab) eps - sqrt(1 - ab) x0`
    (Salimans & Ho 2022, arXiv:2202.00512, appendix D). Both answers in the latents' dtype.
    """
    return reference.eps_and_x0(prediction, latents, alpha_bar, prediction_type)
