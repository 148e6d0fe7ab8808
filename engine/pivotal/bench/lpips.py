"""LPIPS (Zhang et al. 2018, arXiv:1801.03924) on AlexNet, from weights that lie on this machine.

The published weights are pickles, which pivotal never loads. Whoever has them writes them once as
safetensors, from the authors' package:

    weights = lpips.LPIPS(net="alex").state_dict()
    kept = {k: v.contiguous() for k, v in weights.items() if not k.startswith("lins.")}
    safetensors.torch.save_file(kept, "lpips.safetensors")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

from pivotal.bench.errors import ResultsError
from pivotal.images import Pixels, to_tensor

Distance = Callable[[Pixels, Pixels, NDArray[np.bool_] | None], float]

# AlexNet's convolutions by their keys: stride, padding, and whether pooling comes first.
_LAYERS = {
    "net.slice1.0": (4, 2, False),
    "net.slice2.3": (1, 2, True),
    "net.slice3.6": (1, 1, True),
    "net.slice4.8": (1, 1, False),
    "net.slice5.10": (1, 1, False),
}
_KEYS = (
    "scaling_layer.shift",
    "scaling_layer.scale",
    *(f"{name}.{part}" for name in _LAYERS for part in ("weight", "bias")),
    *(f"lin{place}.model.1.weight" for place in range(len(_LAYERS))),
)


def lpips(path: Path) -> Distance:
    """Of two pictures, 0 for equal ones. Outside the chosen pixels both are made black, as
    PIE-Bench's code does; NaN where none are chosen.

    Raises ResultsError for a file that does not hold these weights.
    """
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ResultsError(f"{str(path)!r} can't be read as safetensors: {error}") from error
    missing = [key for key in _KEYS if key not in weights]
    if missing:
        raise ResultsError(
            f"{str(path)!r} lacks {missing[0]} and {len(missing) - 1} more of LPIPS' AlexNet "
            "weights"
        )

    def distance(source: Pixels, picture: Pixels, where: NDArray[np.bool_] | None) -> float:
        if where is None or not where.any():
            return float("nan")
        shown = where[..., None].astype(np.uint8)
        with torch.no_grad():
            return float(lpips_distance(weights, to_tensor(source * shown),
                                        to_tensor(picture * shown)))  # fmt: skip

    return distance


def lpips_distance(weights: Mapping[str, Tensor], first: Tensor, second: Tensor) -> Tensor:
    """Eq. 1: over layers, the mean over places of the weighted squared difference of features that
    have unit length over channels.

    first, second: float32 [B, 3, H, W] from -1 to 1. Gives float32 [B].
    """
    total = torch.zeros(first.shape[0])
    pairs = zip(_features(weights, first), _features(weights, second), strict=True)
    for place, (a, b) in enumerate(pairs):
        difference = conv2d((_unit(a) - _unit(b)) ** 2, weights[f"lin{place}.model.1.weight"])
        total = total + difference.mean(dim=(1, 2, 3))
    return total


def _features(weights: Mapping[str, Tensor], pictures: Tensor) -> list[Tensor]:
    """After each of AlexNet's five convolutions and its rectifier."""
    x = (pictures - weights["scaling_layer.shift"]) / weights["scaling_layer.scale"]
    found = []
    for name, (stride, padding, pooled) in _LAYERS.items():
        x = max_pool2d(x, 3, 2) if pooled else x
        x = conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding).relu()
        found.append(x)
    return found


def _unit(features: Tensor) -> Tensor:
    """[B, C, h, w] with unit length over C; the authors' 1e-10 keeps zeros finite."""
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
