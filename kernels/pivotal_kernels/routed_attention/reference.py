"""Routed attention with explicit maps: the specification.

Runs in any floating dtype, float64 included.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference(
    query: Tensor,  # [B, H, N, D]
    key: Tensor,  # [B, H, L, D]
    value: Tensor,  # [B, H, L, D]
    donors: Tensor,  # [B] int64
    mix: Tensor,  # [B, L, L]
    keep: Tensor,  # [B, L]
    words: Tensor | None,  # [B, L, K]
    scale: float,
) -> tuple[Tensor, Tensor | None]:
    """Form the edited map `A_d mix + A diag(keep)` and apply it to values and word columns."""
    own = torch.softmax(scale * query @ key.transpose(-1, -2), dim=-1)  # [B, H, N, L]
    edited = own[donors] @ mix[:, None].to(own.dtype) + own * keep[:, None, None].to(own.dtype)
    out = edited @ value
    if words is None:
        return out, None
    return out, (edited @ words[:, None].to(own.dtype)).mean(dim=1)
