"""The Triton kernels as operators that `torch.compile` and autograd know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..autograd import gradients_by_recomputing
from .reference import guided_step, working_dtype


@torch.library.custom_op("pivotal_kernels::guided_step", mutates_args=())
def guided_step_op(
    prediction: Tensor,
    latents: Tensor,
    alpha_bar: Tensor,
    to_alpha_bar: Tensor,
    prediction_type: str,
    uncond: Tensor | None,
    guidance_scale: Tensor | None,
    offset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`triton_kernel.guided_step_triton`; Triton is imported when it first runs."""
    from .triton_kernel import guided_step_triton

    return guided_step_triton(
        prediction,
        latents,
        alpha_bar,
        to_alpha_bar,
        prediction_type,
        uncond,
        guidance_scale,
        offset,
    )


@torch.library.custom_op("pivotal_kernels::noise_residual", mutates_args=())
def noise_residual_op(
    prediction: Tensor,
    latents: Tensor,
    alpha_bar: Tensor,
    scale: Tensor,
    offset: Tensor,
    prediction_type: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`triton_kernel.noise_residual_triton`; it gives its gradients itself, and has none of its
    own.
    """
    from .triton_kernel import noise_residual_triton

    return noise_residual_triton(prediction, latents, alpha_bar, scale, offset, prediction_type)


@guided_step_op.register_fake
def _(prediction: Tensor, latents: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _fresh(latents), _fresh(latents), _fresh(latents)


@noise_residual_op.register_fake
def _(prediction: Tensor, latents: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    losses = latents.new_empty(latents.shape[:1], dtype=working_dtype(latents))
    return _fresh(latents), losses, _fresh(latents), _fresh(latents)


def _fresh(latents: Tensor) -> Tensor:
    return latents.new_empty(latents.shape, dtype=working_dtype(latents))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.prediction_type = inputs[4]
    ctx.save_for_backward(*inputs[:4], *inputs[5:])


def _backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:
    """The step is affine: running the reference again costs no more than a saved formula."""

    def step(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        tensors, guidance_and_offset = inputs[:4], inputs[4:]
        return guided_step(*tensors, ctx.prediction_type, *guidance_and_offset)  # type: ignore[call-arg]

    wanted = (*ctx.needs_input_grad[:4], *ctx.needs_input_grad[5:])
    found = gradients_by_recomputing(step, ctx.saved_tensors, wanted, output_gradients)
    return (*found[:4], None, *found[4:])


guided_step_op.register_autograd(_backward, setup_context=_save)
