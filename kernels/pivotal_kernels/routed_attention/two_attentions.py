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
    mixed = mix[:, None].to(value.dtype) @ value  # [B, H, L, D(+K)]
    kept = keep[:, None, :, None].to(value.dtype) * value
    own = attention(query, key, kept, scale)
    borrowed = attention(query[donors], key[donors], mixed, scale)
    out = own + borrowed
    if words is None:
        return out, None
    return out[..., :width], out[..., width : width + words.shape[-1]].mean(dim=1)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return scaled_dot_product_attention(query, key, value, scale=scale)


def _xformers(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    from xformers.ops import memory_efficient_attention

    inside = (tensor.transpose(1, 2) for tensor in (query, key, value))  # heads third, as there
    out: Tensor = memory_efficient_attention(*inside, scale=scale)
    return out.transpose(1, 2)


sdpa = partial(two_attentions, _sdpa)
xformers = partial(two_attentions, _xformers)
