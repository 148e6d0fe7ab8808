"""Contract, checks and dispatch of the guided DDIM step, of what leads to it from a prediction, and
of NoiseGradient's residual.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .. import backends
from ..backends import Backend, Facts, choose, installed, on_triton
from . import reference
from .op import eps_and_x0_op, guided_step_op, noise_residual_op
from .reference import PredictionType

Impl = Literal["auto", "reference", "triton"]
Pair = tuple[Tensor, Tensor]
"""eps and x0, [B, C, h, w] each."""

_FLOATING = backends.one_of(torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TRITON = (installed("triton"), on_triton(), _FLOATING)


def _stepped(
    eps: Tensor,
    x0: Tensor,
    to_alpha_bar: float | Tensor | None,
    uncond_eps: Tensor | None,
    uncond_x0: Tensor | None,
    guidance_scale: float | Tensor | None,
    offset: Tensor | None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The operator, which takes tensors, as the reference, which takes numbers too."""
    levels, scales = (_of_rows(value, x0) for value in (to_alpha_bar, guidance_scale))
    found = guided_step_op(eps, x0, levels, uncond_eps, uncond_x0, scales, offset)
    working = reference.working_dtype(x0)
    guided = found[1:] if uncond_eps is not None else (eps.to(working), x0.to(working))
    return None if to_alpha_bar is None else found[0], *guided


def _of_rows(value: float | Tensor | None, like: Tensor) -> Tensor | None:
    """A number as [B] float64, filled where it is needed: no copy from the host."""
    if value is None or isinstance(value, Tensor):
        return value
    return torch.full(like.shape[:1], value, dtype=torch.float64, device=like.device)


EPS_AND_X0: dict[str, Backend] = {
    "reference": Backend(reference.eps_and_x0),
    "triton": Backend(eps_and_x0_op, _TRITON),
}
GUIDED_STEP: dict[str, Backend] = {
    "reference": Backend(reference.guided_step),
    "triton": Backend(_stepped, _TRITON),
}
NOISE_RESIDUAL: dict[str, Backend] = {
    "reference": Backend(reference.noise_residual),
    "triton": Backend(noise_residual_op, _TRITON),
}
_OPS = {"eps_and_x0": EPS_AND_X0, "guided_step": GUIDED_STEP, "noise_residual": NOISE_RESIDUAL}

PREFERENCE = ("triton", "reference")
"""What "auto" tries, in order: the fused kernels where there is a GPU, elsewhere the reference."""


class GuidedStep(NamedTuple):
    """[B, C, h, w] each, float32, or float64 if x0 was."""

    latents: Tensor  # at the next level
    eps: Tensor
    x0: Tensor


class NoiseResidual(NamedTuple):
    """float32, or float64 if the latents were."""

    eps: Tensor  # [B, C, h, w]
    loss: Tensor  # [B]
    prediction_gradient: Tensor  # [B, C, h, w], of the row's loss: where a backward pass starts
    latents_gradient: Tensor  # [B, C, h, w], what does not pass through the network


def eps_and_x0(
    prediction: Tensor,
    latents: Tensor,
    alpha_bar: Tensor,
    prediction_type: PredictionType,
    *,
    impl: Impl = "auto",
) -> Pair:
    """eps and x0 from what the network predicts, `z = sqrt(ab) x0 + sqrt(1 - ab) eps`.

    prediction, latents: [B, C, h, w], any floating dtype; alpha_bar: [B] float64. Both answers are
    float32, or float64 if the latents are. Has gradients with respect to every floating input.

    Raises ValueError for shapes that do not fit, or an impl that can't serve these inputs.
    """
    _check_type(prediction_type)
    _check("latents", latents, like={"prediction": prediction}, rows={"alpha_bar": alpha_bar})
    run = _backend("eps_and_x0", impl, latents)
    found: Pair = run(prediction, latents, alpha_bar, prediction_type)
    return found


def guide(uncond: Pair, cond: Pair, guidance_scale: float | Tensor, *, impl: Impl = "auto") -> Pair:
    """Classifier-free guidance alone: as `guided_step`, without the step."""
    _, eps, x0 = _guided_step(*cond, None, uncond, guidance_scale, None, impl)
    return eps, x0


def guided_step(
    eps: Tensor,
    x0: Tensor,
    to_alpha_bar: float | Tensor,
    *,
    uncond: Pair | None = None,
    guidance_scale: float | Tensor | None = None,
    offset: Tensor | None = None,
    impl: Impl = "auto",
) -> GuidedStep:
    """Classifier-free guidance of eps and x0, DDIM, and an offset, in one.

    `z' = sqrt(ab') x0_w + sqrt(1 - ab') eps_w + offset` (arXiv:2207.12598, Eq. 6; arXiv:2010.02502,
    Eq. 12 with eta 0). eps and x0 are the network's under the prompt, as `eps_and_x0` gives them:
    between that and the step lies the algorithm's question. eps, x0: [B, C, h, w], any floating
    dtype; to_alpha_bar: where the latents go, one for all rows or [B] float64. uncond: the
    unconditional eps and x0, with guidance_scale, one or [B]; None for none. offset: [B, C, h, w],
    added last. Arithmetic is float32, or float64 if x0 is. Has gradients with respect to every
    floating input.

    Raises ValueError for shapes that do not fit, one of uncond and guidance_scale alone, or an impl
    that can't serve these inputs.
    """
    if (uncond is None) != (guidance_scale is None):
        given = "guidance_scale" if uncond is None else "uncond"
        raise ValueError(f"{given} is given alone; guidance needs uncond and guidance_scale")
    found = _guided_step(eps, x0, to_alpha_bar, uncond, guidance_scale, offset, impl)
    return GuidedStep(*found)


def _guided_step(
    eps: Tensor,
    x0: Tensor,
    to_alpha_bar: float | Tensor | None,
    uncond: Pair | None,
    guidance_scale: float | Tensor | None,
    offset: Tensor | None,
    impl: Impl,
) -> Any:
    unguided = (None, None) if uncond is None else uncond
    like = dict(zip(("eps", "uncond eps", "uncond x0"), (eps, *unguided), strict=True))
    rows = {"to_alpha_bar": to_alpha_bar, "guidance_scale": guidance_scale}
    _check("x0", x0, like={**like, "offset": offset}, rows=rows)
    run = _backend("guided_step", impl, x0)
    return run(eps, x0, to_alpha_bar, *unguided, guidance_scale, offset)


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
    _check_type(prediction_type)
    _check(
        "latents",
        latents,
        like={"prediction": prediction, "offset": offset},
        rows={"alpha_bar": alpha_bar, "scale": scale},
    )
    tensors = {"prediction": prediction, "latents": latents, "scale": scale, "offset": offset}
    for name, tensor in tensors.items():
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} requires a gradient; noise_residual takes detached tensors")
    run = _backend("noise_residual", impl, latents)
    return NoiseResidual(*run(prediction, latents, alpha_bar, scale, offset, prediction_type))


def _backend(op: str, impl: str, latents: Tensor) -> Callable[..., Any]:
    return _OPS[op][_chosen(op, impl, latents.device.type, latents.dtype)].run


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _chosen(op: str, impl: str, device: str, dtype: torch.dtype) -> str:
    return _settled(op, impl, Facts(device, dtype))


@cache
def _settled(op: str, impl: str, facts: Facts) -> str:
    return choose(op, impl, PREFERENCE, _OPS[op], facts)


def _check_type(prediction_type: str) -> None:
    accepted = get_args(PredictionType)
    if prediction_type not in accepted:
        raise ValueError(
            f"prediction_type={prediction_type!r} is unknown; accepted are {', '.join(accepted)}"
        )


def _check(
    of: str,
    latents: Tensor,
    like: Mapping[str, Tensor | None],
    rows: Mapping[str, float | Tensor | None],
) -> None:
    """of: what the caller calls the latents that all else is to fit."""
    if latents.ndim != 4:
        raise ValueError(f"{of} has shape {list(latents.shape)}; [B, C, h, w] is expected")
    for expected, group in ((latents.shape, like), (latents.shape[:1], rows)):
        for name, tensor in group.items():
            if not isinstance(tensor, Tensor):
                continue
            if tensor.shape != expected:
                raise ValueError(
                    f"{name} has shape {list(tensor.shape)}; {list(expected)} fits {of} "
                    f"{list(latents.shape)}"
                )
            if tensor.device != latents.device:
                raise ValueError(f"{name} is on {tensor.device} where {of} is on {latents.device}")
