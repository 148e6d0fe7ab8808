"""Routed attention as two fused attentions of torch's `scaled_dot_product_attention`.

Makes no map.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention


def sdpa(
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
    own = scaled_dot_product_attention(query, key, kept, scale=scale)
    borrowed = scaled_dot_product_attention(query[donors], key[donors], mixed, scale=scale)
    out = own + borrowed
    if words is None:
        return out, None
    return out[..., :width], out[..., width : width + words.shape[-1]].mean(dim=1)
