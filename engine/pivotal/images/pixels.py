"""Pictures inside pivotal: uint8 RGB `[H, W, 3]` in sRGB, and what the networks see of them."""

import math

import numpy as np
import numpy.typing as npt
import torch

from pivotal.errors import NonFiniteError

Pixels = npt.NDArray[np.uint8]  # RGB, [H, W, 3]
Mask = npt.NDArray[np.bool_]  # [H, W]


def check_pixels(pixels: Pixels) -> None:
    """Raise ValueError unless these are uint8 `[H, W, 3]` with at least one pixel."""
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        kind = getattr(pixels, "dtype", type(pixels).__name__)
        raise ValueError(f"pixels are {kind}: give a uint8 array [H, W, 3]")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ValueError(f"pixels have shape {list(pixels.shape)}: give [H, W, 3]")


def to_tensor(pixels: Pixels) -> torch.Tensor:
    """uint8 `[H, W, 3]` to float32 `[1, 3, H, W]` in [-1, 1], on the CPU."""
    check_pixels(pixels)
    values = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
    return (values / 127.5 - 1).contiguous()


def from_tensor(tensor: torch.Tensor) -> list[Pixels]:
    """`[B, 3, h, w]` in [-1, 1], any float dtype and device, to B arrays of uint8 `[h, w, 3]`.

    Values outside are clamped and the rest rounded to nearest. Raises ValueError for another
    shape, NonFiniteError for NaN or infinity.
    """
    if tensor.ndim != 4 or tensor.shape[1] != 3:
        raise ValueError(f"decoded images have shape {list(tensor.shape)}: expected [B, 3, h, w]")
    values = tensor.detach().float()
    if not torch.isfinite(values).all():
        raise NonFiniteError("the decoded image holds NaN or infinity: try float32 or bfloat16")
    levels = ((values + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [np.ascontiguousarray(image) for image in levels.permute(0, 2, 3, 1).cpu().numpy()]


def psnr(a: Pixels, b: Pixels, mask: Mask | None = None) -> float:
    """Peak signal-to-noise ratio in decibels, peak 1.0, computed in float64; inf where equal.

    `mask` `[H, W]` selects the pixels that count. Raises ValueError for unequal sizes, a mask of
    another size or type, and one that selects nothing.
    """
    check_pixels(a)
    check_pixels(b)
    if a.shape != b.shape:
        raise ValueError(f"can't compare {extent(a.shape[:2])} with {extent(b.shape[:2])} pixels")
    difference = (a.astype(np.float64) - b.astype(np.float64)) / 255
    if mask is not None:
        if mask.dtype != np.bool_ or mask.shape != a.shape[:2]:
            raise ValueError(
                f"mask is {mask.dtype} {list(mask.shape)}: give bool {list(a.shape[:2])}"
            )
        if not mask.any():
            raise ValueError("mask selects no pixel: a PSNR over nothing is undefined")
        difference = difference[mask]
    error = float(np.mean(difference**2))
    return math.inf if error == 0 else -10 * math.log10(error)


def extent(size: tuple[int, ...]) -> str:
    return f"{size[0]} x {size[1]}"
