"""Routed attention as two calls of any fused attention: torch's, or xformers'.

Makes no map.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

Attention = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(query, key, value, scale), each [B, H, N or L, D], to [B, H, N, D]."""


def two_attentions(
    attention: Attention,
    query: Tensor,  # [B, H, N, D]
    key: Tensor,  # [B, H, L, D]
    value: Tensor,  # [B, H, L, D]
    donors: Tensor,  # [B] int64
    mix: Tensor,  # [B, L, L]
    keep: Tensor,  # [B, L]
    words: Tensor | None,  # [B, L, K]
    scale: float,
) -> tuple[Tensor, Tensor | None]:
    """Mix and weigh the values, which are L rows long, instead of the N rows of a map."""
    width = value.shape[-1]
    if words is not None:
        columns = words[:, None].to(value.dtype).expand(-1, value.shape[1], -1, -1)
        value = torch.cat([value, columns], dim=-1)  # [B, H, L, D + K]
        # Values wider than queries send SDPA to the backend that materialises the map; zeros cost
        # nothing in the product. Fused GPU backends want a width divisible by 8.
        value = pad(value, (0, -value.shape[-1] % 8))
        query = pad(query, (0, value.shape[-1] - width))
        key = pad(key, (0, value.shape[-1] - width))
    kept = keep[:, None, :, None].to(value.dtype) * value
    out = attention(query, key, kept, scale)
    rows = _borrowers(mix, query, key, kept)
    if rows is None:
        mixed = mix[:, None].to(value.dtype) @ value  # [B, H, L, D(+K)]
        out = out + attention(query[donors], key[donors], mixed, scale)
    elif len(rows):
        mixed, lent = mix[rows, None].to(value.dtype) @ value[rows], donors[rows]
        out[rows] += attention(query[lent], key[lent], mixed, scale)
    if words is None:
        return out, None
    return out[..., :width], out[..., width : width + words.shape[-1]].mean(dim=1)


def _borrowers(mix: Tensor, *inputs: Tensor) -> Tensor | None:
    """The rows that borrow anything, int64 [R]; None where all are taken to.

    Most rows of an edit borrow nothing, but only a CPU can look at the values without waiting, and
    a graph or a gradient must be the same for all values.
    """
    differentiable = torch.is_grad_enabled() and any(each.requires_grad for each in (mix, *inputs))
    if mix.device.type != "cpu" or differentiable or torch.compiler.is_compiling():
        return None
    return mix.flatten(1).any(dim=1).nonzero().flatten()


def _sdpa(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return scaled_dot_product_attention(query, key, value, scale=scale)


def _xformers(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    from xformers.ops import memory_efficient_attention

    inside = (tensor.transpose(1, 2) for tensor in (query, key, value))  # heads third, as there
    out: Tensor = memory_efficient_attention(*inside, scale=scale)
    return out.transpose(1, 2)


sdpa = partial(two_attentions, _sdpa)
xformers = partial(two_attentions, _xformers)
