"""Which size a picture gets inside a model: sides that its networks can halve, and not too many."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Literal, get_args

from .pixels import extent

logger = logging.getLogger(__name__)

FitPolicy = Literal["fit", "crop", "pad", "stretch"]
Size = tuple[int, int] | Literal["source"]
"""(height, width) in pixels, or "source": the picture's own."""

MAX_MODEL_PIXELS = 4096 * 4096
"""The largest picture that a network is asked about: attention looks at 262,144 places at once."""
_ROUNDING: dict[FitPolicy, Callable[[float], int]] = {"crop": math.floor, "pad": math.ceil}


def model_size(
    source: tuple[int, int], wanted: Size, policy: FitPolicy = "fit", multiple: int = 1
) -> tuple[int, int]:
    """The (height, width) that a picture of size `source` is brought to, in multiples.

    `fit` takes as many pixels as `wanted` has, in the picture's own aspect, each side rounded to
    the nearest multiple. The others take `wanted` as it is; "source" is rounded down to crop, up
    to pad, to the nearest to fit and stretch, so that cropping and padding resample nothing.

    Raises ValueError for an unknown policy, an impossible size, and one over `MAX_MODEL_PIXELS`.
    """
    if policy not in get_args(FitPolicy):
        raise ValueError(f"fit policy {policy!r} is unknown: give one of {get_args(FitPolicy)}")
    if isinstance(wanted, str):
        if wanted != "source":
            raise ValueError(f"size={wanted!r}: give (height, width), or 'source'")
        height, width = float(source[0]), float(source[1])
    else:
        if len(wanted) != 2 or min(wanted) < 1:
            raise ValueError(f"can't fit to {wanted}: give (height, width) of 1 pixel and more")
        if policy == "fit":
            share = math.sqrt(math.prod(wanted) / math.prod(source))
            height, width = source[0] * share, source[1] * share
        else:
            height, width = float(wanted[0]), float(wanted[1])
    rounding = _ROUNDING.get(policy, round)
    found = tuple(max(rounding(side / multiple), 1) * multiple for side in (height, width))
    if math.prod(found) > MAX_MODEL_PIXELS:
        raise ValueError(
            f"can't fit to {extent(found)}: a model takes at most "
            f"{MAX_MODEL_PIXELS // 1_000_000} million pixels; give a smaller size"
        )
    return found[0], found[1]


def warn_if_far(size: tuple[int, int], trained: tuple[int, int]) -> None:
    """Log a warning for a picture of over four times the pixels that a model was trained on."""
    if math.prod(size) > 4 * math.prod(trained):
        logger.warning(
            "%s has %.0f times the pixels that the model was trained on (%s): at such sizes "
            "generated parts tend to repeat themselves; policy 'fit' scales to the model's size",
            extent(size),
            math.prod(size) / math.prod(trained),
            extent(trained),
        )
