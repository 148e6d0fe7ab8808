"""Attention as the papers write it: the whole softmax map is made, shown to a hook, and applied.

`Attention(Q, K, V) = softmax(Q K^T / sqrt(d)) V` on diffusers' `Attention` modules. A UNet is
copied before its processors are exchanged, so the original is untouched.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor


class MapHook(Protocol):
    """Called with each softmax map in the order in which the UNet runs; returns the map to use.

    `attention` is `[B * heads, N, L]`, batch-major (row b's heads are adjacent); L is N in
    self-attention. `place` is the module's path, e.g. `down_blocks.0.attentions.0
    .transformer_blocks.0.attn2`. Do not write into `attention` where gradients are wanted.
    """

    def __call__(self, attention: Tensor, is_cross: bool, place: str) -> Tensor: ...


def leave_alone(attention: Tensor, is_cross: bool, place: str) -> Tensor:
    """The hook that edits nothing."""
    return attention


def heads_to_batch(x: Tensor, heads: int) -> Tensor:
    """`[B, N, heads * d]` -> `[B * heads, N, d]`."""
    batch, length, width = x.shape
    x = x.reshape(batch, length, heads, width // heads).permute(0, 2, 1, 3)
    return x.reshape(batch * heads, length, width // heads)


def batch_to_heads(x: Tensor, heads: int) -> Tensor:
    """`[B * heads, N, d]` -> `[B, N, heads * d]`."""
    rows, length, width = x.shape
    x = x.reshape(rows // heads, heads, length, width).permute(0, 2, 1, 3)
    return x.reshape(rows // heads, length, heads * width)


class ExplicitAttention:
    """An attention processor for one diffusers `Attention` module; state-free but for its hook."""

    def __init__(self, place: str, hook: MapHook) -> None:
        self.place = place
        self.hook = hook

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """`[B, N, C]` and the text `[B, L, D]` or None (self-attention) -> `[B, N, C]`."""
        if hidden_states.ndim != 3 or attn.spatial_norm is not None or attn.norm_cross:
            raise ValueError(f"{self.place}: only a UNet's transformer attention is written out")
        if attn.norm_q is not None or attn.norm_k is not None:
            raise ValueError(f"{self.place}: normalised queries and keys are not written out")

        residual = hidden_states
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        is_cross = encoder_hidden_states is not None
        text = encoder_hidden_states if encoder_hidden_states is not None else hidden_states

        q = heads_to_batch(attn.to_q(hidden_states), attn.heads)  # [B * heads, N, d]
        k = heads_to_batch(attn.to_k(text), attn.heads)  # [B * heads, L, d]
        v = heads_to_batch(attn.to_v(text), attn.heads)  # [B * heads, L, d]
        if attn.upcast_attention and q.dtype in (torch.float16, torch.bfloat16):
            q, k = q.float(), k.float()
        scores = torch.bmm(q * attn.scale, k.transpose(1, 2))  # [B * heads, N, L]
        mask = attn.prepare_attention_mask(attention_mask, text.shape[1], text.shape[0])
        if mask is not None:
            scores = scores + mask
        if attn.upcast_softmax and scores.dtype in (torch.float16, torch.bfloat16):
            scores = scores.float()
        attention = scores.softmax(dim=-1).to(v.dtype)
        attention = self.hook(attention, is_cross, self.place)

        out = batch_to_heads(torch.bmm(attention, v), attn.heads)
        out = attn.to_out[1](attn.to_out[0](out))
        if attn.residual_connection:
            out = out + residual
        result: Tensor = out / attn.rescale_output_factor
        return result


def attention_modules(unet: torch.nn.Module) -> Iterator[tuple[str, Attention]]:
    """Every attention of a UNet2DConditionModel with its path, in the order in which it runs."""
    for stage in ("down_blocks", "mid_block", "up_blocks"):
        block = getattr(unet, stage)
        if block is None:
            continue
        for name, module in block.named_modules():
            if isinstance(module, Attention):
                yield f"{stage}.{name}", module


def explicit_copy(unet: torch.nn.Module, hook: MapHook = leave_alone) -> torch.nn.Module:
    """A deep copy of the UNet whose every attention makes its map and shows it to the hook."""
    unet = copy.deepcopy(unet)
    for place, module in attention_modules(unet):
        module.set_processor(ExplicitAttention(place, hook))
    return unet
