"""Contract, checks and dispatch of routed cross-attention."""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..backends import Backend, Facts, choose, heads_up_to, installed, on_cuda, on_triton, one_of
from .op import gated, routed_attention_op
from .reference import reference
from .two_attentions import sdpa, xformers

Impl = Literal["auto", "reference", "sdpa", "xformers", "triton"]

_FAST = one_of(torch.float16, torch.bfloat16, torch.float32)
_REACH = 256  # the widest head that fused kernels take

BACKENDS: dict[str, Backend] = {
    "reference": Backend(reference),
    "sdpa": Backend(sdpa),
    "xformers": Backend(xformers, (installed("xformers"), on_cuda(), _FAST)),
    "triton": Backend(
        routed_attention_op, (installed("triton"), on_triton(), _FAST, heads_up_to(_REACH))
    ),
}

PREFERENCE = ("sdpa",)
"""What "auto" tries, in order. Triton's kernel comes first once it was timed faster on a GPU."""


class RoutedAttention(NamedTuple):
    """out: [B, H, N, D], the values' dtype. word_maps: [B, N, K], the mean over heads, or None."""

    out: Tensor
    word_maps: Tensor | None


def routed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    donors: Tensor,
    mix: Tensor,
    keep: Tensor,
    words: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> RoutedAttention:
    """`A_d (mix V) + A (keep * V)` with `A = softmax(scale Q K^T)` and `A_d` the donor row's.

    This is every Prompt-to-Prompt edit of cross-attention (Hertz et al. 2022, arXiv:2208.01626,
    section 3.2), written so that no map is made. With `words`, the same maps weigh word columns,
    and their mean over heads is returned: `mean_h(A_d (mix w) + A (keep * w))`.

    query: [B, H, N, D]; key, value: [B, H, L, D], all three of one dtype; donors: [B] int64, row
    indices; mix: [B, L, L]; keep: [B, L]; words: [B, L, K]; these may differ from the values' dtype
    and are cast to it. gate: [B], 1 where a row's mix and keep act, 0 where it keeps its own
    attention (None: all act); the Triton kernel does no work for the donors of closed rows. scale:
    1/sqrt(D) if None.

    impl: "reference" makes the maps; "sdpa" and "xformers" are two fused attentions; "triton" is
    one kernel. "auto" takes the first of `PREFERENCE` that fits, settled and logged once for each
    device, dtype and head size; a named one never falls back. All have gradients with respect to
    every floating input; Triton's are those of "sdpa", run again. A donor outside the batch makes
    Triton's row NaN (looking first would stop the device); the others index as torch does.

    Raises ValueError for shapes that do not fit, an unknown impl, or one that can't serve these
    inputs, with the reasons.
    """
    _check(query, key, value, donors, mix, keep, words, gate)
    width = query.shape[-1]
    chosen = _chosen(impl, value.device.type, value.dtype, width)
    factor = width**-0.5 if scale is None else scale
    run = BACKENDS[chosen].run
    if chosen == "triton":
        out, maps = run(query, key, value, donors, mix, keep, gate, words, factor)
        return RoutedAttention(out, None if words is None else maps)
    mix, keep = gated(mix, keep, gate)
    out, maps = run(query, key, value, donors, mix, keep, words, factor)
    return RoutedAttention(out, maps)


def settle(
    impl: Impl, device: str, dtype: torch.dtype, width: int, *, argument: str = "impl"
) -> str:
    """The implementation that `routed_attention` would run for heads of this width; "auto" settled.

    argument: what the caller calls it. Raises ValueError for one that is unknown or does not fit,
    with its reasons.
    """
    return _settled(impl, Facts(device, dtype, width), argument)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _chosen(impl: str, device: str, dtype: torch.dtype, width: int) -> str:
    return _settled(impl, Facts(device, dtype, width))


@cache
def _settled(impl: str, facts: Facts, argument: str = "impl") -> str:
    return choose("routed_attention", impl, PREFERENCE, BACKENDS, facts, argument=argument)


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    donors: Tensor,
    mix: Tensor,
    keep: Tensor,
    words: Tensor | None,
    gate: Tensor | None,
) -> None:
    for name, tensor in (("query", query), ("key", key)):
        if tensor.ndim != 4:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; four dimensions are expected")
    rows, heads, _, width = query.shape
    length = key.shape[2]
    expected = {
        "key": (key, (rows, heads, length, width)),
        "value": (value, (rows, heads, length, width)),
        "donors": (donors, (rows,)),
        "mix": (mix, (rows, length, length)),
        "keep": (keep, (rows, length)),
    }
    if words is not None:
        expected["words"] = (words, (rows, length, words.shape[-1]))
    if gate is not None:
        expected["gate"] = (gate, (rows,))
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}; "
                f"{list(shape)} fits query {list(query.shape)}"
            )
    for name, tensor in (("query", query), ("key", key)):
        if tensor.dtype != value.dtype:
            raise ValueError(f"{name} is {tensor.dtype} where value is {value.dtype}")
