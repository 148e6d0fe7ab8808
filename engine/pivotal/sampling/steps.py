"""Steps between noise levels, as free functions over tensors. One DDIM for both directions.

Coefficients are computed in float64 from the table and applied in the latents' dtype (float32;
float64 where an exact method asks for it). The formulas of DDIM, guidance and eps and x0 stand in
the kernels' reference, which is what runs on a CPU; on a GPU it is the fused ops that are held to
it.
"""

from __future__ import annotations

import math

from torch import Tensor

from pivotal.query import Noise
from pivotal.schedule import NoiseLevel, PredictionType
from pivotal_kernels import guided_step as ops


def ddim_step(noise: Noise, to: NoiseLevel) -> Tensor:
    """DDIM to a noise level, up or down: `sqrt(ab) x0 + sqrt(1 - ab) eps`.

    Eq. 12 of Song et al. 2020 (arXiv:2010.02502) with eta 0. Returns latents [B, C, h, w].
    """
    return ops.guided_step(noise.eps, noise.x0, to.alpha_bar).latents


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
    pairs = (uncond.eps, uncond.x0), (cond.eps, cond.x0)
    return Noise(*ops.guide(*pairs, guidance_scale), cond.word_maps)


def guided_step(
    uncond: Noise, cond: Noise, guidance_scale: float, to: NoiseLevel
) -> tuple[Tensor, Noise]:
    """`guide`, then `ddim_step`, as one op: latents [B, C, h, w] at the level, and the guided noise
    that leads there.
    """
    latents, eps, x0 = ops.guided_step(
        cond.eps,
        cond.x0,
        to.alpha_bar,
        uncond=(uncond.eps, uncond.x0),
        guidance_scale=guidance_scale,
    )
    return latents, Noise(eps, x0, cond.word_maps)


def eps_and_x0(
    prediction: Tensor, latents: Tensor, alpha_bar: Tensor, prediction_type: PredictionType
) -> tuple[Tensor, Tensor]:
    """eps and x0 from what the network predicts, `z = sqrt(ab) x0 + sqrt(1 - ab) eps`.

    prediction, latents: [B, C, h, w]; alpha_bar: [B] float64. v is `sqrt(ab) eps - sqrt(1 - ab) x0`
    (Salimans & Ho 2022, arXiv:2202.00512, appendix D). Both answers in the latents' dtype.
    """
    return ops.eps_and_x0(prediction, latents, alpha_bar, prediction_type)
