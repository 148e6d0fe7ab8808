"""Arrays and tensors that are pictures already: checked, and brought to uint8."""

import numpy as np
import numpy.typing as npt
import torch

from .pixels import Pixels
from .refusals import check_extent

_RANGE_SLACK = 1e-6  # float32 arithmetic may end a hair outside [0, 1]


def channels_last(tensor: torch.Tensor) -> npt.NDArray[np.generic]:
    values = tensor.detach().cpu()
    if values.ndim == 4 and values.shape[0] == 1:
        values = values[0]
    if values.ndim != 3 or values.shape[0] != 3:
        raise ValueError(f"tensor has shape {list(tensor.shape)}: give [3, H, W] or [1, 3, H, W]")
    if values.dtype != torch.uint8:
        if not values.is_floating_point():
            raise ValueError(f"tensor has dtype {tensor.dtype}: give uint8, or floats in [0, 1]")
        values = values.float()  # numpy has no bfloat16
    channels_last: npt.NDArray[np.generic] = values.permute(1, 2, 0).numpy()
    return channels_last


def from_samples(values: npt.NDArray[np.generic], name: str, shape: str) -> Pixels:
    if values.ndim != 3 or values.shape[2] != 3:
        raise ValueError(f"{name} has shape {list(values.shape)}: give {shape}")
    check_extent((values.shape[0], values.shape[1]), name)
    if values.dtype == np.uint8:
        return np.array(values, dtype=np.uint8)
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{name} has dtype {values.dtype}: give uint8, or floats in [0, 1]")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinity: give finite values in [0, 1]")
    if not within_unit(values):
        raise ValueError(
            f"{name} holds values from {values.min():g} to {values.max():g}: give [0, 1]"
        )
    return quantise(values)


def within_unit(values: npt.NDArray[np.generic]) -> bool:
    """False for NaN, too."""
    return bool(values.min() >= -_RANGE_SLACK and values.max() <= 1 + _RANGE_SLACK)


def quantise(values: npt.NDArray[np.generic]) -> Pixels:
    return np.rint(values.astype(np.float32) * 255).clip(0, 255).astype(np.uint8)
