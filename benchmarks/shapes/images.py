"""Between uint8 pictures and the autoencoder's pixels, and the decibels between pictures."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray


def to_tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def to_images(pixels: torch.Tensor) -> NDArray[np.uint8]:
    """float [B, 3, H, W] in [-1, 1] to uint8 [B, H, W, 3]."""
    levels = pixels.float().add(1).mul(127.5).round().clamp(0, 255)
    images: NDArray[np.uint8] = levels.byte().permute(0, 2, 3, 1).contiguous().numpy()
    return images


def psnr(
    images: NDArray[np.uint8],
    others: NDArray[np.uint8],
    where: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Decibels of each uint8 image [B, H, W, 3] against its counterpart, float64 [B].

    With `where`, bool [B, H, W], only over those pixels.
    """
    error = (images.astype(np.float64) - others.astype(np.float64)) ** 2
    if where is None:
        where = np.ones(images.shape[:3], dtype=np.bool_)
    mean = (error.mean(axis=3) * where).sum(axis=(1, 2)) / where.sum(axis=(1, 2))
    decibels: NDArray[np.float64] = 10 * np.log10(255.0**2 / np.maximum(mean, 1e-12))
    return decibels
