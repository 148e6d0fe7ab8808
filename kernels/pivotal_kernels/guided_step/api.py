"""Contract, checks and dispatch of the guided DDIM step and of NoiseGradient's residual."""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .. import backends
from ..backends import Backend, Facts, choose, installed, on_triton
from . import reference
from .op import guided_step_op, noise_residual_op
from .reference import PredictionType

Impl = Literal["auto", "reference", "triton"]

_FLOATING = backends.one_of(torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TRITON = (installed("triton"), on_triton(), _FLOATING)

GUIDED_STEP: dict[str, Backend] = {
    "reference": Backend(reference.guided_step),
    "triton": Backend(guided_step_op, _TRITON),
}
NOISE_RESIDUAL: dict[str, Backend] = {
    "reference": Backend(reference.noise_residual),
    "triton": Backend(noise_residual_op, _TRITON),
}

PREFERENCE = ("reference",)
"""What "auto" tries, in order. Triton's kernels come first once timed faster on a GPU."""


class GuidedStep(NamedTuple):
    """[B, C, h, w] each, float32, or float64 if the latents were."""

    latents: Tensor  # at the next level
    eps: Tensor
    x0: Tensor


class NoiseResidual(NamedTuple):
    """float32, or float64 if the latents were."""

    eps: Tensor  # [B, C, h, w]
    loss: Tensor  # [B]
    prediction_gradient: Tensor  # [B, C, h, w], of the row's loss: where a backward pass starts
    latents_gradient: Tensor  # [B, C, h, w], what does not pass through the network


def guided_step(
    prediction: Tensor,
    latents: Tensor,
    alpha_bar: Tensor,
    to_alpha_bar: Tensor,
    prediction_type: PredictionType,
    *,
    uncond: Tensor | None = None,
    guidance_scale: Tensor | None = None,
    offset: Tensor | None = None,
    impl: Impl = "auto",
) -> GuidedStep:
    """Classifier-free guidance, eps and x0 from the prediction, DDIM, and an offset, in one.

    `z' = sqrt(ab') x0_w + sqrt(1 - ab') eps_w + offset` (arXiv:2207.12598, Eq. 6; arXiv:2010.02502,
    Eq. 12 with eta 0). Every row has its own levels and guidance. prediction, latents: [B, C, h,
    w], any floating dtype; alpha_bar, to_alpha_bar: [B] float64, where the latents are and where
    they go. uncond: the unconditional prediction, with guidance_scale [B]; None for none. offset:
    [B, C, h, w], added last (direct inversion's correction). Arithmetic is float32, or float64 if
    the latents are. Has gradients with respect to every floating input.

    Raises ValueError for shapes that do not fit, one of uncond and guidance_scale alone, or an impl
    that can't serve these inputs.
    """
    if (uncond is None) != (guidance_scale is None):
        given = "guidance_scale" if uncond is None else "uncond"
        raise ValueError(f"{given} is given alone; guidance needs uncond and guidance_scale")
    _check(
        latents,
        prediction_type,
        like={"prediction": prediction, "uncond": uncond, "offset": offset},
        rows={
            "alpha_bar": alpha_bar,
            "to_alpha_bar": to_alpha_bar,
            "guidance_scale": guidance_scale,
        },
    )
    chosen = _chosen("guided_step", impl, latents.device.type, latents.dtype)
    found = GUIDED_STEP[chosen].run(
        prediction,
        latents,
        alpha_bar,
        to_alpha_bar,
        prediction_type,
        uncond,
        guidance_scale,
        offset,
    )
    return GuidedStep(*found)


def noise_residual(
    prediction: Tensor,
    latents: Tensor,
    alpha_bar: Tensor,
    scale: Tensor,
    offset: Tensor,
    prediction_type: PredictionType,
    *,
    impl: Impl = "auto",
) -> NoiseResidual:
    """`mean((scale * eps + offset)^2)` per row, and its gradients: what `NoiseGradient` asks.

    prediction, latents, offset: [B, C, h, w], any floating dtype; alpha_bar: [B] float64; scale:
    [B]. The gradients are closed formulas: start the network's backward pass with
    `prediction_gradient`, and add `latents_gradient` where the latents are what is differentiated.
    Arithmetic is float32, or float64 if the latents are.

    Raises ValueError for shapes that do not fit, an impl that can't serve these inputs, or inputs
    that require gradients: the answer holds them, so give it detached tensors.
    """
    _check(
        latents,
        prediction_type,
        like={"prediction": prediction, "offset": offset},
        rows={"alpha_bar": alpha_bar, "scale": scale},
    )
    tensors = {"prediction": prediction, "latents": latents, "scale": scale, "offset": offset}
    for name, tensor in tensors.items():
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} requires a gradient; noise_residual takes detached tensors")
    chosen = _chosen("noise_residual", impl, latents.device.type, latents.dtype)
    found = NOISE_RESIDUAL[chosen].run(
        prediction, latents, alpha_bar, scale, offset, prediction_type
    )
    return NoiseResidual(*found)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _chosen(op: str, impl: str, device: str, dtype: torch.dtype) -> str:
    return _settled(op, impl, Facts(device, dtype))


@cache
def _settled(op: str, impl: str, facts: Facts) -> str:
    known = GUIDED_STEP if op == "guided_step" else NOISE_RESIDUAL
    return choose(op, impl, PREFERENCE, known, facts)


def _check(
    latents: Tensor,
    prediction_type: str,
    like: dict[str, Tensor | None],
    rows: dict[str, Tensor | None],
) -> None:
    accepted = get_args(PredictionType)
    if prediction_type not in accepted:
        raise ValueError(
            f"prediction_type={prediction_type!r} is unknown; accepted are {', '.join(accepted)}"
        )
    if latents.ndim != 4:
        raise ValueError(f"latents have shape {list(latents.shape)}; [B, C, h, w] is expected")
    for expected, group in ((latents.shape, like), (latents.shape[:1], rows)):
        for name, tensor in group.items():
            if tensor is not None and tensor.shape != expected:
                raise ValueError(
                    f"{name} has shape {list(tensor.shape)}; {list(expected)} fits latents "
                    f"{list(latents.shape)}"
                )
    for name, tensor in (like | rows).items():
        if tensor is not None and tensor.device != latents.device:
            raise ValueError(f"{name} is on {tensor.device} where latents are on {latents.device}")
