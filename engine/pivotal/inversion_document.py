"""What an inversion file says of itself, checked value by value: a file may come from anyone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

import numpy as np
from torch import Tensor

from .images import FitPolicy, Fitted

SCHEMA = 3
"""2 added a checksum and the versions of diffusers and transformers, 3 the negative prompt; older
ones are still read."""

_MAX_SIDE = 1_000_000  # pixels; more is no picture's


def check_document(document: Any) -> None:
    """Raise ValueError or KeyError, naming the part, unless it is an inversion's document."""
    if not isinstance(document, dict):
        raise ValueError(f"the document is {type(document).__name__}")
    schema = document["schema"]
    if not _is_whole(schema) or schema < 1:
        raise ValueError(f"schema {schema!r}")
    parts = _PARTS if schema >= 3 else {k: v for k, v in _PARTS.items() if k != "negative_prompt"}
    for name, (what, accepts) in parts.items():
        if not accepts(document[name]):
            raise ValueError(f"{name} is {_short(document[name])}, {what} is expected")
    fit = document["fit"]
    if fit["policy"] not in get_args(FitPolicy):
        raise ValueError(f"the fit's policy is {_short(fit['policy'])}")
    for name, count in (("source_size", 2), ("box", 4), ("inner", 4)):
        values = fit[name]
        if not isinstance(values, list) or len(values) != count or not all(map(_is_side, values)):
            raise ValueError(f"the fit's {name} is {_short(values)}")


def fitted(fit: Mapping[str, Any], picture: Tensor) -> Fitted:
    """The fitted picture, from a checked document's "fit" and the file's pixels.

    Raises ValueError where the two do not belong together.
    """
    pixels = picture.numpy()
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"picture of shape {list(pixels.shape)} and type {pixels.dtype}")
    pixels.flags.writeable = False
    source_size, box, inner = (tuple(fit[name]) for name in ("source_size", "box", "inner"))
    for name, (left, top, right, bottom), (height, width) in (
        ("box", box, source_size),
        ("inner", inner, pixels.shape[:2]),
    ):
        if not (left < right <= width and top < bottom <= height):
            raise ValueError(f"the fit's {name} {fit[name]} is not inside {height} x {width}")
    return Fitted(pixels, fit["policy"], source_size, box, inner)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_side(value: Any) -> bool:
    return _is_whole(value) and 0 <= value <= _MAX_SIDE


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300 and math.isfinite(value)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


_PARTS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "prompt": ("a text", _is_text),
    "negative_prompt": ("a text", _is_text),
    "method": ("a text", _is_text),
    "options": ("a mapping", _is_mapping),
    "guidance_scale": ("a finite number", _is_finite),
    "num_inference_steps": (
        "a whole number from 1",
        lambda value: _is_whole(value) and 1 <= value <= 1_000_000,
    ),
    "model": ("a text", _is_text),
    "family": ("a text", _is_text),
    "fingerprint": ("64 hexadecimal digits", _is_digest),
    "image_digest": ("64 hexadecimal digits", _is_digest),
    "schedule": ("a mapping", _is_mapping),
    "report": ("a mapping", _is_mapping),
    "fit": ("a mapping", _is_mapping),
}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}.."
