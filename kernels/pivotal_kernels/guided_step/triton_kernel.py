"""A prediction's eps and x0, a guided DDIM step, and NoiseGradient's residual, each as one pass
over the latents, in Triton.

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


def eps_and_x0_triton(
    prediction: Tensor, latents: Tensor, alpha_bar: Tensor, prediction_type: str
) -> tuple[Tensor, Tensor]:
    """As `reference.eps_and_x0`."""
    eps, x0 = _empty_like(latents), _empty_like(latents)
    if eps.numel() > 0:
        with torch.cuda.device_of(latents):
            _conversion_kernel[_grid(latents)](
                prediction, latents, alpha_bar, eps, x0,
                *prediction.stride(), *latents.stride(), alpha_bar.stride(0),
                *latents.shape[2:], latents[0].numel(), KIND=prediction_type, BLOCK=BLOCK,
            )  # fmt: skip
    return eps, x0


def guided_step_triton(
    eps: Tensor,
    x0: Tensor,
    to_alpha_bar: Tensor | None,
    uncond_eps: Tensor | None,
    uncond_x0: Tensor | None,
    guidance_scale: Tensor | None,
    offset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.guided_step`; what is not computed has no element: latents without a level, eps
    and x0 without guidance.
    """
    steps, guides = to_alpha_bar is not None, uncond_eps is not None
    stepped, *guided = (_empty_like(x0, there) for there in (steps, guides, guides))
    if x0.numel() > 0 and (steps or guides):
        with torch.cuda.device_of(x0):
            _step_kernel[_grid(x0)](
                eps, x0, uncond_eps, uncond_x0, offset, to_alpha_bar, guidance_scale,
                stepped if steps else None, *(guided if guides else (None, None)),
                *eps.stride(), *x0.stride(), *_strides(uncond_eps), *_strides(uncond_x0),
                *_strides(offset), _stride(to_alpha_bar), _stride(guidance_scale),
                *x0.shape[2:], x0[0].numel(), BLOCK=BLOCK,
            )  # fmt: skip
    return stepped, guided[0], guided[1]


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


def _empty_like(latents: Tensor, there: bool = True) -> Tensor:
    shape = latents.shape if there else (0,)
    return torch.empty(shape, dtype=working_dtype(latents), device=latents.device)


def _grid(latents: Tensor) -> tuple[int, int]:
    return latents.shape[0], triton.cdiv(latents[0].numel(), BLOCK)


def _strides(tensor: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0) if tensor is None else tensor.stride()


def _stride(rows: Tensor | None) -> int:
    return 0 if rows is None else rows.stride(0)


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
def _noise(predicted, noisy, signal, spread, KIND: tl.constexpr):
    """eps [BLOCK] from what the network predicts."""
    if KIND == "epsilon":
        noise = predicted
    elif KIND == "v_prediction":
        noise = spread * noisy + signal * predicted
    else:
        noise = (noisy - signal * predicted) / spread
    return noise


@triton.jit
def _conversion_kernel(
    prediction, latents, alpha_bar, eps, x0,
    prediction_stride_b, prediction_stride_c, prediction_stride_h, prediction_stride_w,
    latents_stride_b, latents_stride_c, latents_stride_h, latents_stride_w,
    alpha_bar_stride_b,
    height, width, size, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
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
    signal, spread = _levels(alpha_bar, row, alpha_bar_stride_b, eps)
    if KIND == "epsilon":
        clean = (noisy - spread * predicted) / signal
    elif KIND == "v_prediction":
        clean = signal * noisy - spread * predicted
    else:
        clean = predicted
    noise = _noise(predicted, noisy, signal, spread, KIND)
    tl.store(eps + row * size + index, noise, mask=here)
    tl.store(x0 + row * size + index, clean, mask=here)


@triton.jit
def _step_kernel(
    eps, x0, uncond_eps, uncond_x0, offset, to_alpha_bar, guidance_scale,
    out, guided_eps, guided_x0,
    eps_stride_b, eps_stride_c, eps_stride_h, eps_stride_w,
    x0_stride_b, x0_stride_c, x0_stride_h, x0_stride_w,
    uncond_eps_stride_b, uncond_eps_stride_c, uncond_eps_stride_h, uncond_eps_stride_w,
    uncond_x0_stride_b, uncond_x0_stride_c, uncond_x0_stride_h, uncond_x0_stride_w,
    offset_stride_b, offset_stride_c, offset_stride_h, offset_stride_w,
    to_alpha_bar_stride_b, guidance_scale_stride_b,
    height, width, size, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = index < size
    working = (guided_eps if out is None else out).dtype.element_ty

    place = _place(
        row, index, height, width, eps_stride_b, eps_stride_c, eps_stride_h, eps_stride_w
    )
    noise = tl.load(eps + place, mask=here, other=0.0).to(working)
    place = _place(row, index, height, width, x0_stride_b, x0_stride_c, x0_stride_h, x0_stride_w)
    clean = tl.load(x0 + place, mask=here, other=0.0).to(working)
    if uncond_eps is not None:
        guidance = tl.load(guidance_scale + row * guidance_scale_stride_b).to(working)
        place = _place(
            row, index, height, width,
            uncond_eps_stride_b, uncond_eps_stride_c, uncond_eps_stride_h, uncond_eps_stride_w,
        )  # fmt: skip
        unguided = tl.load(uncond_eps + place, mask=here, other=0.0).to(working)
        noise = unguided + guidance * (noise - unguided)
        place = _place(
            row, index, height, width,
            uncond_x0_stride_b, uncond_x0_stride_c, uncond_x0_stride_h, uncond_x0_stride_w,
        )  # fmt: skip
        unguided = tl.load(uncond_x0 + place, mask=here, other=0.0).to(working)
        clean = unguided + guidance * (clean - unguided)
        tl.store(guided_eps + row * size + index, noise, mask=here)
        tl.store(guided_x0 + row * size + index, clean, mask=here)
    if out is not None:
        signal, spread = _levels(to_alpha_bar, row, to_alpha_bar_stride_b, out)
        stepped = signal * clean + spread * noise
        if offset is not None:
            place = _place(
                row, index, height, width,
                offset_stride_b, offset_stride_c, offset_stride_h, offset_stride_w,
            )  # fmt: skip
            stepped += tl.load(offset + place, mask=here, other=0.0).to(working)
        tl.store(out + row * size + index, stepped, mask=here)


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

    noise = _noise(predicted, noisy, signal, spread, KIND)
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
