"""Routed attention in one pass over the queries, in Triton.

A program holds one block of queries of one row and head, forms the edited map `A_d mix + A
diag(keep)` a block of keys at a time in registers, and applies it to values and word columns. Maps
never reach memory. A row whose gate is 0 never reads its donor. A row whose donor is not in the
batch becomes NaN.
"""

# Triton compiles these functions from their source; pointers and tiles have no Python types.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass
from math import e, log2

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """Block shapes and launch settings of one kind of inputs."""

    queries: int
    keys: int
    width: int
    columns: int  # 0 without words
    warps: int

    @staticmethod
    def of(queries: int, length: int, width: int, columns: int, bytes_each: int) -> Blocks:
        """Powers of two of at least 16, as matrix units want. The limits are what 96 KiB of shared
        memory hold, and what compiles for compute capability 8.0 and 9.0 with few spilled
        registers; nobody has timed them.
        """
        padded = max(16, int(triton.next_power_of_2(width)))
        if bytes_each == 4:
            most_queries, most_keys = (32, 64) if padded <= 64 else (16, 32)
        else:
            most_queries, most_keys = (64, 128) if padded <= 128 else (32, 128)
        keys = _between(16, length, most_keys)
        return Blocks(
            queries=_between(16, queries, most_queries),
            keys=keys,
            width=padded,
            columns=max(16, int(triton.next_power_of_2(columns))) if columns else 0,
            warps=8 if keys == 128 or padded == 256 else 4,
        )


def routed_attention_triton(
    query: Tensor,  # [B, H, N, D]
    key: Tensor,  # [B, H, L, D]
    value: Tensor,  # [B, H, L, D]
    donors: Tensor,  # [B] int64
    mix: Tensor,  # [B, L, L]
    keep: Tensor,  # [B, L]
    gate: Tensor | None,  # [B]
    words: Tensor | None,  # [B, L, K]
    scale: float,
) -> tuple[Tensor, Tensor]:
    """out [B, H, N, D], its memory laid out as [B, N, H, D]; word maps [B, N, K], K 0 without
    words. Any strides; every tensor on one device, floating ones but mix, keep, gate and words of
    one dtype.
    """
    rows, heads, queries, width = query.shape
    length = key.shape[2]
    columns = 0 if words is None else words.shape[2]
    out = torch.empty(
        (rows, queries, heads, width), dtype=value.dtype, device=value.device
    ).transpose(1, 2)
    # One map a head, summed afterwards: deterministic, where atomic additions are not.
    maps = torch.empty((rows, heads, queries, columns), dtype=torch.float32, device=value.device)
    if out.numel() == 0:
        return out, out.new_zeros((rows, queries, columns))
    blocks = Blocks.of(queries, length, width, columns, value.element_size())
    grid = (triton.cdiv(queries, blocks.queries) * rows * heads,)
    with torch.cuda.device_of(value):
        _kernel[grid](
            query, key, value, donors, mix, keep, gate, words, out, maps,
            *query.stride(), *key.stride(), *value.stride(), donors.stride(0), *mix.stride(),
            *keep.stride(), 0 if gate is None else gate.stride(0),
            *((0, 0, 0) if words is None else words.stride()), *out.stride(),
            rows, heads, queries, length, width, columns, scale * log2(e),
            BLOCK_N=blocks.queries, BLOCK_L=blocks.keys, BLOCK_D=blocks.width,
            BLOCK_K=blocks.columns, KEY_BLOCKS=triton.cdiv(length, blocks.keys),
            WIDEN=value.dtype == torch.bfloat16 and interpreted(),
            num_warps=blocks.warps, num_stages=1,
        )  # fmt: skip
    return out, maps.mean(dim=1).to(value.dtype)


def interpreted() -> bool:
    """Under Triton's interpreter, whose products take bfloat16 for whole numbers."""
    return not isinstance(_kernel, triton.JITFunction)


def _between(least: int, size: int, most: int) -> int:
    return min(max(least, int(triton.next_power_of_2(size))), most)


@triton.jit
def _product(left, right, WIDEN: tl.constexpr):
    """A matrix product of tiles with float32 sums, as exact as its operands."""
    if WIDEN:
        return tl.dot(left.to(tl.float32), right.to(tl.float32))
    # float32 as three tf32 products: plain multiply-adds take minutes to compile and spill.
    return tl.dot(left, right, input_precision="tf32x3")


@triton.jit
def _scores(
    query, key, start, key_stride_l, key_stride_d, length, width, log2_scale,
    BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """`scale Q K^T` for one block of keys, in units of log 2; -inf past the last key."""
    tokens = (start + tl.arange(0, BLOCK_L)).to(tl.int64)
    dims = tl.arange(0, BLOCK_D).to(tl.int64)
    keys = tl.load(
        key + dims[:, None] * key_stride_d + tokens[None, :] * key_stride_l,
        mask=(dims[:, None] < width) & (tokens[None, :] < length),
        other=0.0,
    )  # [BLOCK_D, BLOCK_L]
    scores = _product(query, keys, WIDEN) * log2_scale  # [BLOCK_N, BLOCK_L]
    return tl.where(tokens[None, :] < length, scores, float("-inf"))


@triton.jit
def _statistics(
    query, key, key_stride_l, key_stride_d, length, width, log2_scale,
    BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
    KEY_BLOCKS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Each query's largest score and its sum of exponentials over all keys, [BLOCK_N] each."""
    largest = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    for block in range(KEY_BLOCKS):
        scores = _scores(
            query, key, block * BLOCK_L, key_stride_l, key_stride_d, length, width, log2_scale,
            BLOCK_L, BLOCK_D, WIDEN,
        )  # fmt: skip
        larger = tl.maximum(largest, tl.max(scores, 1))
        total = total * tl.exp2(largest - larger) + tl.sum(tl.exp2(scores - larger[:, None]), 1)
        largest = larger
    return largest, total


@triton.jit
def _probabilities(
    query, key, start, key_stride_l, key_stride_d, length, width, log2_scale, largest, total,
    BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr, KEY_BLOCKS: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """One block of keys of the map, [BLOCK_N, BLOCK_L] float32. The statistics are read only where
    there are several blocks.
    """
    scores = _scores(
        query, key, start, key_stride_l, key_stride_d, length, width, log2_scale,
        BLOCK_L, BLOCK_D, WIDEN,
    )  # fmt: skip
    if KEY_BLOCKS == 1:
        powers = tl.exp2(scores - tl.max(scores, 1)[:, None])
        return powers / tl.sum(powers, 1)[:, None]
    return tl.exp2(scores - largest[:, None]) / total[:, None]


@triton.jit
def _kernel(
    query, key, value, donors, mix, keep, gate, words, out, maps,
    query_stride_b, query_stride_h, query_stride_n, query_stride_d,
    key_stride_b, key_stride_h, key_stride_l, key_stride_d,
    value_stride_b, value_stride_h, value_stride_l, value_stride_d,
    donors_stride_b, mix_stride_b, mix_stride_d, mix_stride_l, keep_stride_b, keep_stride_l,
    gate_stride_b, words_stride_b, words_stride_l, words_stride_k,
    out_stride_b, out_stride_h, out_stride_n, out_stride_d,
    rows, heads, queries, length, width, columns, log2_scale,
    BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
    KEY_BLOCKS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    query_blocks = tl.cdiv(queries, BLOCK_N)
    program = tl.program_id(0)
    block = program % query_blocks
    head = ((program // query_blocks) % heads).to(tl.int64)
    row = (program // (query_blocks * heads)).to(tl.int64)
    places = (block * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    dims = tl.arange(0, BLOCK_D).to(tl.int64)
    inside = (places[:, None] < queries) & (dims[None, :] < width)
    dtype = value.dtype.element_ty

    opened = 1.0
    if gate is not None:
        opened = tl.load(gate + row * gate_stride_b).to(tl.float32)

    tile = places[:, None] * query_stride_n + dims[None, :] * query_stride_d
    queried = tl.load(
        query + row * query_stride_b + head * query_stride_h + tile, mask=inside, other=0.0
    )  # [BLOCK_N, BLOCK_D]
    keys = key + row * key_stride_b + head * key_stride_h
    donor = row
    known = row >= 0
    donor_queried = queried
    if opened != 0:
        donor = tl.load(donors + row * donors_stride_b).to(tl.int64)
        known = (donor >= 0) & (donor < rows)
        donor = tl.where(known, donor, row)  # never read beyond the batch
        donor_queried = tl.load(
            query + donor * query_stride_b + head * query_stride_h + tile, mask=inside, other=0.0
        )
    donor_keys = key + donor * key_stride_b + head * key_stride_h

    largest = tl.zeros([BLOCK_N], tl.float32)
    total = tl.full([BLOCK_N], 1.0, tl.float32)
    donor_largest = largest
    donor_total = total
    if KEY_BLOCKS > 1:
        largest, total = _statistics(
            queried, keys, key_stride_l, key_stride_d, length, width, log2_scale,
            BLOCK_N, BLOCK_L, BLOCK_D, KEY_BLOCKS, WIDEN,
        )  # fmt: skip
        if opened != 0:
            donor_largest, donor_total = _statistics(
                donor_queried, donor_keys, key_stride_l, key_stride_d, length, width, log2_scale,
                BLOCK_N, BLOCK_L, BLOCK_D, KEY_BLOCKS, WIDEN,
            )  # fmt: skip

    attended = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if BLOCK_K > 0:
        word_attention = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for own_block in range(KEY_BLOCKS):
        own_start = own_block * BLOCK_L
        tokens = (own_start + tl.arange(0, BLOCK_L)).to(tl.int64)
        here = tokens < length
        kept = tl.load(
            keep + row * keep_stride_b + tokens * keep_stride_l, mask=here, other=0.0
        ).to(tl.float32)
        edited = _probabilities(
            queried, keys, own_start, key_stride_l, key_stride_d, length, width, log2_scale,
            largest, total, BLOCK_L, BLOCK_D, KEY_BLOCKS, WIDEN,
        )  # fmt: skip
        edited *= (1 + opened * (kept - 1))[None, :]
        if opened != 0:
            for donor_block in range(KEY_BLOCKS):
                donor_start = donor_block * BLOCK_L
                borrowed = _probabilities(
                    donor_queried, donor_keys, donor_start, key_stride_l, key_stride_d,
                    length, width, log2_scale, donor_largest, donor_total,
                    BLOCK_L, BLOCK_D, KEY_BLOCKS, WIDEN,
                )  # fmt: skip
                donor_tokens = (donor_start + tl.arange(0, BLOCK_L)).to(tl.int64)
                mixer = tl.load(
                    mix
                    + row * mix_stride_b
                    + donor_tokens[:, None] * mix_stride_d
                    + tokens[None, :] * mix_stride_l,
                    mask=(donor_tokens[:, None] < length) & here[None, :],
                    other=0.0,
                )  # [BLOCK_L, BLOCK_L], donor's tokens to the row's
                mixer = (opened * mixer.to(tl.float32)).to(dtype)
                edited += _product(borrowed.to(dtype), mixer, WIDEN)
        values = tl.load(
            value
            + row * value_stride_b
            + head * value_stride_h
            + tokens[:, None] * value_stride_l
            + dims[None, :] * value_stride_d,
            mask=here[:, None] & (dims[None, :] < width),
            other=0.0,
        )  # [BLOCK_L, BLOCK_D]
        attended += _product(edited.to(dtype), values, WIDEN)
        if BLOCK_K > 0:
            ks = tl.arange(0, BLOCK_K).to(tl.int64)
            chosen = tl.load(
                words
                + row * words_stride_b
                + tokens[:, None] * words_stride_l
                + ks[None, :] * words_stride_k,
                mask=here[:, None] & (ks[None, :] < columns),
                other=0.0,
            ).to(dtype)  # [BLOCK_L, BLOCK_K]
            word_attention += _product(edited.to(dtype), chosen, WIDEN)

    attended = tl.where(known, attended, float("nan"))
    tl.store(
        out
        + row * out_stride_b
        + head * out_stride_h
        + places[:, None] * out_stride_n
        + dims[None, :] * out_stride_d,
        attended.to(dtype),
        mask=inside,
    )
    if BLOCK_K > 0:
        ks = tl.arange(0, BLOCK_K).to(tl.int64)
        tl.store(
            maps + ((row * heads + head) * queries + places[:, None]) * columns + ks[None, :],
            tl.where(known, word_attention, float("nan")),
            mask=(places[:, None] < queries) & (ks[None, :] < columns),
        )
