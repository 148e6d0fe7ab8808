"""A whole guided DDIM step, and NoiseGradient's residual, each as one pass over the latents, in
Triton.

Each program takes one row's next block of elements. Rows have their own noise levels, guidance and
scale. Inputs may have any strides; outputs are contiguous.
"""

# Triton compiles these functions from their source; pointers and tiles have no Python types.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import working_dtype

BLOCK = 1024  # elements a program: eight a thread


def guided_step_triton(
    prediction: Tensor,
    latents: Tensor,
    alpha_bar: Tensor,
    to_alpha_bar: Tensor,
    prediction_type: str,
    uncond: Tensor | None,
    guidance_scale: Tensor | None,
    offset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.guided_step`; the guided prediction is converted once."""
    out, eps, x0 = (_empty_like(latents) for _ in range(3))
    if out.numel() == 0:
        return out, eps, x0
    with torch.cuda.device_of(latents):
        _step_kernel[_grid(latents)](
            prediction, latents, uncond, offset, alpha_bar, to_alpha_bar, guidance_scale,
            out, eps, x0,
            *prediction.stride(), *latents.stride(), *_strides(uncond), *_strides(offset),
            alpha_bar.stride(0), to_alpha_bar.stride(0),
            0 if guidance_scale is None else guidance_scale.stride(0),
            *latents.shape[2:], latents[0].numel(), KIND=prediction_type, BLOCK=BLOCK,
        )  # fmt: skip
    return out, eps, x0


def noise_residual_triton(
    prediction: Tensor,
    latents: Tensor,
    alpha_bar: Tensor,
    scale: Tensor,
    offset: Tensor,
    prediction_type: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference.noise_residual`; each block's sum of squares is kept and added afterwards, so
    that the loss is the same on every run.
    """
    eps, prediction_gradient, latents_gradient = (_empty_like(latents) for _ in range(3))
    rows, blocks = _grid(latents)
    sums = torch.empty((rows, blocks), dtype=eps.dtype, device=eps.device)
    if eps.numel() > 0:
        with torch.cuda.device_of(latents):
            _residual_kernel[(rows, blocks)](
                prediction, latents, offset, alpha_bar, scale,
                eps, prediction_gradient, latents_gradient, sums,
                *prediction.stride(), *latents.stride(), *offset.stride(),
                alpha_bar.stride(0), scale.stride(0),
                *latents.shape[2:], latents[0].numel(), blocks, KIND=prediction_type, BLOCK=BLOCK,
            )  # fmt: skip
    return eps, sums.sum(dim=1) / latents[0].numel(), prediction_gradient, latents_gradient


def _empty_like(latents: Tensor) -> Tensor:
    return torch.empty(latents.shape, dtype=working_dtype(latents), device=latents.device)


def _grid(latents: Tensor) -> tuple[int, int]:
    return latents.shape[0], triton.cdiv(latents[0].numel(), BLOCK)


def _strides(tensor: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0) if tensor is None else tensor.stride()


@triton.jit
def _place(row, index, height, width, stride_b, stride_c, stride_h, stride_w):
    """Offsets of a row's elements, counted [C, h, w], in memory of any strides. int64 [BLOCK]."""
    column = index % width
    line = (index // width) % height
    channel = index // (width * height)
    return row * stride_b + channel * stride_c + line * stride_h + column * stride_w


@triton.jit
def _levels(alpha_bar, row, stride_b, like):
    """`sqrt(ab)` and `sqrt(1 - ab)`, computed in float64, rounded to `like`'s dtype."""
    value = tl.load(alpha_bar + row * stride_b).to(tl.float64)
    dtype = like.dtype.element_ty
    return tl.sqrt(value).to(dtype), tl.sqrt(1 - value).to(dtype)


@triton.jit
def _step_kernel(
    prediction, latents, uncond, offset, alpha_bar, to_alpha_bar, guidance_scale,
    out, eps, x0,
    prediction_stride_b, prediction_stride_c, prediction_stride_h, prediction_stride_w,
    latents_stride_b, latents_stride_c, latents_stride_h, latents_stride_w,
    uncond_stride_b, uncond_stride_c, uncond_stride_h, uncond_stride_w,
    offset_stride_b, offset_stride_c, offset_stride_h, offset_stride_w,
    alpha_bar_stride_b, to_alpha_bar_stride_b, guidance_scale_stride_b,
    height, width, size, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = index < size
    working = out.dtype.element_ty

    place = _place(
        row, index, height, width,
        prediction_stride_b, prediction_stride_c, prediction_stride_h, prediction_stride_w,
    )  # fmt: skip
    predicted = tl.load(prediction + place, mask=here, other=0.0).to(working)
    if uncond is not None:
        place = _place(
            row, index, height, width,
            uncond_stride_b, uncond_stride_c, uncond_stride_h, uncond_stride_w,
        )  # fmt: skip
        unguided = tl.load(uncond + place, mask=here, other=0.0).to(working)
        guidance = tl.load(guidance_scale + row * guidance_scale_stride_b).to(working)
        predicted = unguided + guidance * (predicted - unguided)
    place = _place(
        row, index, height, width,
        latents_stride_b, latents_stride_c, latents_stride_h, latents_stride_w,
    )  # fmt: skip
    noisy = tl.load(latents + place, mask=here, other=0.0).to(working)

    signal, spread = _levels(alpha_bar, row, alpha_bar_stride_b, out)
    if KIND == "epsilon":
        noise = predicted
        clean = (noisy - spread * predicted) / signal
    elif KIND == "v_prediction":
        noise = spread * noisy + signal * predicted
        clean = signal * noisy - spread * predicted
    else:
        noise = (noisy - signal * predicted) / spread
        clean = predicted
    signal, spread = _levels(to_alpha_bar, row, to_alpha_bar_stride_b, out)
    stepped = signal * clean + spread * noise
    if offset is not None:
        place = _place(
            row, index, height, width,
            offset_stride_b, offset_stride_c, offset_stride_h, offset_stride_w,
        )  # fmt: skip
        stepped += tl.load(offset + place, mask=here, other=0.0).to(working)
    tl.store(out + row * size + index, stepped, mask=here)
    tl.store(eps + row * size + index, noise, mask=here)
    tl.store(x0 + row * size + index, clean, mask=here)


@triton.jit
def _residual_kernel(
    prediction, latents, offset, alpha_bar, scale,
    eps, prediction_gradient, latents_gradient, sums,
    prediction_stride_b, prediction_stride_c, prediction_stride_h, prediction_stride_w,
    latents_stride_b, latents_stride_c, latents_stride_h, latents_stride_w,
    offset_stride_b, offset_stride_c, offset_stride_h, offset_stride_w,
    alpha_bar_stride_b, scale_stride_b,
    height, width, size, blocks, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    index = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = index < size
    working = eps.dtype.element_ty

    place = _place(
        row, index, height, width,
        prediction_stride_b, prediction_stride_c, prediction_stride_h, prediction_stride_w,
    )  # fmt: skip
    predicted = tl.load(prediction + place, mask=here, other=0.0).to(working)
    place = _place(
        row, index, height, width,
        latents_stride_b, latents_stride_c, latents_stride_h, latents_stride_w,
    )  # fmt: skip
    noisy = tl.load(latents + place, mask=here, other=0.0).to(working)
    place = _place(
        row, index, height, width,
        offset_stride_b, offset_stride_c, offset_stride_h, offset_stride_w,
    )  # fmt: skip
    shift = tl.load(offset + place, mask=here, other=0.0).to(working)
    factor = tl.load(scale + row * scale_stride_b).to(working)
    signal, spread = _levels(alpha_bar, row, alpha_bar_stride_b, eps)

    if KIND == "epsilon":
        noise = predicted
    elif KIND == "v_prediction":
        noise = spread * noisy + signal * predicted
    else:
        noise = (noisy - signal * predicted) / spread
    residual = tl.where(here, factor * noise + shift, 0.0)
    gradient = 2 * factor * residual / size  # at eps
    if KIND == "epsilon":
        by_prediction = gradient
        by_latents = tl.zeros_like(gradient)
    elif KIND == "v_prediction":
        by_prediction = signal * gradient
        by_latents = spread * gradient
    else:
        by_prediction = -signal / spread * gradient
        by_latents = gradient / spread
    tl.store(eps + row * size + index, noise, mask=here)
    tl.store(prediction_gradient + row * size + index, by_prediction, mask=here)
    tl.store(latents_gradient + row * size + index, by_latents, mask=here)
    tl.store(sums + row * blocks + block, tl.sum(residual * residual))
