"""The Triton kernels as operators that `torch.compile` and autograd know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..autograd import gradients_by_recomputing
from . import reference
from .reference import working_dtype


@torch.library.custom_op("pivotal_kernels::eps_and_x0", mutates_args=())
def eps_and_x0_op(
    prediction: Tensor, latents: Tensor, alpha_bar: Tensor, prediction_type: str
) -> tuple[Tensor, Tensor]:
    """`triton_kernel.eps_and_x0_triton`; Triton is imported when it first runs."""
    from .triton_kernel import eps_and_x0_triton

    return eps_and_x0_triton(prediction, latents, alpha_bar, prediction_type)


@torch.library.custom_op("pivotal_kernels::guided_step", mutates_args=())
def guided_step_op(
    eps: Tensor,
    x0: Tensor,
    to_alpha_bar: Tensor | None,
    uncond_eps: Tensor | None,
    uncond_x0: Tensor | None,
    guidance_scale: Tensor | None,
    offset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`triton_kernel.guided_step_triton`: latents, eps and x0. What is not computed has no element:
    latents without a level to go to, eps and x0 without guidance.
    """
    from .triton_kernel import guided_step_triton

    return guided_step_triton(eps, x0, to_alpha_bar, uncond_eps, uncond_x0, guidance_scale, offset)


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


@eps_and_x0_op.register_fake
def _(prediction: Tensor, latents: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _fresh(latents), _fresh(latents)


@guided_step_op.register_fake
def _(
    eps: Tensor, x0: Tensor, to_alpha_bar: Tensor | None, uncond_eps: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    guided = uncond_eps is not None
    return _fresh(x0, to_alpha_bar is not None), _fresh(x0, guided), _fresh(x0, guided)


@noise_residual_op.register_fake
def _(prediction: Tensor, latents: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    losses = latents.new_empty(latents.shape[:1], dtype=working_dtype(latents))
    return _fresh(latents), losses, _fresh(latents), _fresh(latents)


def _fresh(latents: Tensor, there: bool = True) -> Tensor:
    return latents.new_empty(latents.shape if there else (0,), dtype=working_dtype(latents))


def _save_conversion(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.prediction_type = inputs
    ctx.save_for_backward(*tensors)


def _save_step(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)


# Both are affine: running the reference again costs no more than a saved formula.
def _conversion_backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:
    def convert(*tensors: Any) -> tuple[Tensor, Tensor]:
        return reference.eps_and_x0(*tensors, ctx.prediction_type)  # type: ignore[call-arg]

    wanted = ctx.needs_input_grad[:3]
    return (
        *gradients_by_recomputing(convert, ctx.saved_tensors, wanted, output_gradients),
        None,
    )


def _step_backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:
    def step(*tensors: Any) -> tuple[Tensor | None, ...]:
        latents, *guided = reference.guided_step(*tensors)
        return latents, *(guided if tensors[3] is not None else (None, None))

    return tuple(
        gradients_by_recomputing(step, ctx.saved_tensors, ctx.needs_input_grad, output_gradients)
    )


eps_and_x0_op.register_autograd(_conversion_backward, setup_context=_save_conversion)
guided_step_op.register_autograd(_step_backward, setup_context=_save_step)
