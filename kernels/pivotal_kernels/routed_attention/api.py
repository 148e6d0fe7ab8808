"""Contract, checks and dispatch of routed cross-attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

from .reference import reference
from .sdpa import sdpa

Impl = Literal["auto", "reference", "sdpa"]


class RoutedAttention(NamedTuple):
    """out: [B, H, N, D], the values' dtype. word_maps: [B, N, K], the mean over heads, or None."""

    out: Tensor
    word_maps: Tensor | None


IMPLEMENTATIONS: dict[str, Callable[..., tuple[Tensor, Tensor | None]]] = {
    "reference": reference,
    "sdpa": sdpa,
}


def routed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    donors: Tensor,
    mix: Tensor,
    keep: Tensor,
    words: Tensor | None = None,
    *,
    scale: float | None = None,
    impl: Impl = "auto",
) -> RoutedAttention:
    """`A_d (mix V) + A (keep * V)` with `A = softmax(scale Q K^T)` and `A_d` the donor row's.

    This is every Prompt-to-Prompt edit of cross-attention (Hertz et al. 2022, arXiv:2208.01626,
    section 3.2), written so that no map is made. With `words`, the same maps weigh word columns,
    and their mean over heads is returned: `mean_h(A_d (mix w) + A (keep * w))`.

    query: [B, H, N, D]; key, value: [B, H, L, D]; donors: [B] int64, row indices; mix: [B, L, L];
    keep: [B, L]; words: [B, L, K]; all floating tensors may differ from the values' dtype and are
    cast to it. scale: 1/sqrt(D) if None. impl: "auto" takes "sdpa"; a named one never falls back.

    Raises ValueError for shapes that do not fit or an unknown impl.
    """
    for name, tensor in (("query", query), ("key", key)):
        if tensor.ndim != 4:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; four dimensions are expected")
    rows, _, _, width = query.shape
    length = key.shape[2]
    expected = {
        "key": (key, (rows, query.shape[1], length, width)),
        "value": (value, (rows, query.shape[1], length, width)),
        "donors": (donors, (rows,)),
        "mix": (mix, (rows, length, length)),
        "keep": (keep, (rows, length)),
    }
    if words is not None:
        expected["words"] = (words, (rows, length, words.shape[-1]))
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}; "
                f"{list(shape)} fits query {list(query.shape)}"
            )
    chosen = "sdpa" if impl == "auto" else impl
    if chosen not in IMPLEMENTATIONS:
        accepted = ", ".join(["auto", *IMPLEMENTATIONS])
        raise ValueError(f"impl={impl!r} is unknown; accepted are {accepted}")
    factor = width**-0.5 if scale is None else scale
    out, maps = IMPLEMENTATIONS[chosen](query, key, value, donors, mix, keep, words, factor)
    return RoutedAttention(out, maps)
