"""The Triton kernel as an operator that `torch.compile` and autograd know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..autograd import gradients_by_recomputing
from .two_attentions import sdpa


@torch.library.custom_op("pivotal_kernels::routed_attention", mutates_args=())
def routed_attention_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    donors: Tensor,
    mix: Tensor,
    keep: Tensor,
    gate: Tensor | None,
    words: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """`triton_kernel.routed_attention_triton`; Triton is imported when it first runs."""
    from .triton_kernel import routed_attention_triton

    return routed_attention_triton(query, key, value, donors, mix, keep, gate, words, scale)


@routed_attention_op.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    donors: Tensor,
    mix: Tensor,
    keep: Tensor,
    gate: Tensor | None,
    words: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    rows, heads, queries, width = query.shape
    columns = 0 if words is None else words.shape[2]
    out = value.new_empty((rows, queries, heads, width)).transpose(1, 2)
    return out, value.new_empty((rows, queries, columns))


def gated(mix: Tensor, keep: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor]:
    """mix [B, L, L] and keep [B, L] as they act: the identity's where gate [B] is 0."""
    if gate is None:
        return mix, keep
    return gate[:, None, None] * mix, 1 + gate[:, None] * (keep - 1)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, out_gradient: Tensor, maps_gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of two fused attentions, run again: nothing but the inputs is kept, no map made."""

    def two_fused_attentions(*inputs: Any) -> tuple[Tensor, Tensor | None]:
        query, key, value, donors, mix, keep, gate, words = inputs
        return sdpa(query, key, value, donors, *gated(mix, keep, gate), words, ctx.scale)

    gradients = gradients_by_recomputing(
        two_fused_attentions,
        ctx.saved_tensors,
        ctx.needs_input_grad[:8],
        (out_gradient, maps_gradient),
    )
    return (*gradients, None)


routed_attention_op.register_autograd(_backward, setup_context=_save)
