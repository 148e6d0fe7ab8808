"""What is refused before or while decoding, each in one sentence that names the image."""

import math
from pathlib import Path

from .pixels import extent

MAX_PIXELS = 64_000_000
"""The largest picture that is decoded: 192 MB of RGB. A header that promises more is refused."""
READABLE = "PNG, JPEG, WebP, GIF, BMP, TIFF and PPM"


class Unreadable(ValueError):
    """Already a clear sentence: passes through the net around the decoders."""


def damaged(name: str, error: Exception) -> ValueError:
    told = " ".join(str(error).split())
    short = "truncated" in told.lower() or isinstance(error, EOFError)
    state = (
        "truncated: its end is missing" if short else f"damaged ({told or type(error).__name__})"
    )
    return ValueError(f"{name} is {state}")


def too_large(name: str, size: tuple[int, int] | None = None) -> ValueError:
    holds = f"has {extent(size)} pixels" if size else "has too many pixels"
    return Unreadable(
        f"{name} {holds}, and at most {MAX_PIXELS // 1_000_000} million are decoded: scale it down"
    )


def check_extent(size: tuple[int, int], name: str) -> None:
    if min(size) < 1:
        raise Unreadable(f"{name} has no pixels ({extent(size)})")
    if math.prod(size) > MAX_PIXELS:
        raise too_large(name, size)


def foreign_format(head: bytes) -> str | None:
    """Name what people most often give instead of an accepted format."""
    if head[4:8] == b"ftyp":
        return "AVIF" if head[8:11] == b"avi" else "HEIC or a video"
    signatures = {b"%PDF": "a PDF", b"8BPS": "a Photoshop file", b"<svg": "SVG", b"<?xml": "XML"}
    signatures |= {b"\x00\x00\x00\x0cJXL": "JPEG XL", b"\x00\x00\x00\x0cjP": "JPEG 2000"}
    return next((what for magic, what in signatures.items() if head.startswith(magic)), None)


def quoted(source: str | Path) -> str:
    text = str(source)
    return repr(text if len(text) <= 200 else f"{text[:200]}...")
