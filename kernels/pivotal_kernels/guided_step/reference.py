"""Steps between noise levels in plain PyTorch: the specification, and what the algorithms call.

Arithmetic is float32 whatever the inputs' dtype, and float64 where the latents are float64.
Coefficients come from alpha_bar in float64 and are rounded once. An alpha_bar is one float for all
rows, or a float64 tensor [B].
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample"]


def working_dtype(latents: Tensor) -> torch.dtype:
    """float32, or float64 if the latents are."""
    return torch.promote_types(latents.dtype, torch.float32)


def signal_and_spread(alpha_bar: float | Tensor, like: Tensor) -> tuple[float | Tensor, ...]:
    """`sqrt(alpha_bar)` and `sqrt(1 - alpha_bar)`, to multiply [B, C, h, w] with."""
    if not isinstance(alpha_bar, Tensor):
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    parts = (alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
    return tuple(part.to(working_dtype(like))[:, None, None, None] for part in parts)


def eps_and_x0(
    prediction: Tensor,  # [B, C, h, w]
    latents: Tensor,  # [B, C, h, w]
    alpha_bar: float | Tensor,
    prediction_type: PredictionType,
) -> tuple[Tensor, Tensor]:
    """eps and x0 from what the network predicts, `z = sqrt(ab) x0 + sqrt(1 - ab) eps`.

    v is `sqrt(ab) eps - sqrt(1 - ab) x0` (Salimans & Ho 2022, arXiv:2202.00512, appendix D).
    """
    signal, spread = signal_and_spread(alpha_bar, latents)
    latents = latents.to(working_dtype(latents))
    prediction = prediction.to(latents.dtype)
    if prediction_type == "epsilon":
        return prediction, (latents - spread * prediction) / signal
    if prediction_type == "v_prediction":
        return spread * latents + signal * prediction, signal * latents - spread * prediction
    return (latents - signal * prediction) / spread, prediction


def guide(uncond: Tensor, cond: Tensor, guidance_scale: float | Tensor) -> Tensor:
    """Classifier-free guidance, `u + w (c - u)` (arXiv:2207.12598, Eq. 6). w: a float, or [B]."""
    if isinstance(guidance_scale, Tensor):
        guidance_scale = guidance_scale.to(cond.dtype)[:, None, None, None]
    return uncond + guidance_scale * (cond - uncond)


def ddim_step(eps: Tensor, x0: Tensor, alpha_bar: float | Tensor) -> Tensor:
    """DDIM to a noise level, up or down: `sqrt(ab) x0 + sqrt(1 - ab) eps`.

    Eq. 12 of Song et al. 2020 (arXiv:2010.02502) with eta 0.
    """
    signal, spread = signal_and_spread(alpha_bar, x0)
    return signal * x0 + spread * eps


def guided_step(
    eps: Tensor,  # [B, C, h, w]
    x0: Tensor,  # [B, C, h, w]
    to_alpha_bar: float | Tensor | None,
    uncond_eps: Tensor | None,  # [B, C, h, w]
    uncond_x0: Tensor | None,  # [B, C, h, w]
    guidance_scale: float | Tensor | None,
    offset: Tensor | None,  # [B, C, h, w]
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Latents at the next level, None where there is none, and the guided eps and x0."""
    working = working_dtype(x0)
    eps, x0 = eps.to(working), x0.to(working)
    if uncond_eps is not None and uncond_x0 is not None and guidance_scale is not None:
        eps = guide(uncond_eps.to(working), eps, guidance_scale)
        x0 = guide(uncond_x0.to(working), x0, guidance_scale)
    if to_alpha_bar is None:
        return None, eps, x0
    stepped = ddim_step(eps, x0, to_alpha_bar)
    return stepped if offset is None else stepped + offset.to(working), eps, x0


def noise_residual(
    prediction: Tensor,  # [B, C, h, w]
    latents: Tensor,  # [B, C, h, w]
    alpha_bar: Tensor,  # [B] float64
    scale: Tensor,  # [B]
    offset: Tensor,  # [B, C, h, w]
    prediction_type: PredictionType,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """eps, `mean((scale * eps + offset)^2)` [B], and its gradients with respect to the prediction
    and, where eps depends on them directly, the latents.
    """
    eps, _ = eps_and_x0(prediction, latents, alpha_bar, prediction_type)
    scale = scale.to(eps.dtype)[:, None, None, None]
    residual = scale * eps + offset.to(eps.dtype)
    loss = residual.square().mean(dim=(1, 2, 3))
    gradient = (2 / residual[0].numel()) * scale * residual  # at eps
    signal, spread = signal_and_spread(alpha_bar, latents)
    if prediction_type == "epsilon":
        return eps, loss, gradient, torch.zeros_like(gradient)
    if prediction_type == "v_prediction":
        return eps, loss, signal * gradient, spread * gradient
    return eps, loss, -signal / spread * gradient, gradient / spread
