"""A result is on disk whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from pivotal.errors import OutputError

from .pixels import Pixels, check_pixels, extent
from .refusals import quoted
from .settings import metadata_options

_WRITERS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": "4:4:4"},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": "4:4:4"},
    ".webp": {"format": "WEBP", "lossless": True},
}


def save_image(pixels: Pixels, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write uint8 `[H, W, 3]` as PNG, JPEG (quality 95) or lossless WebP, by the extension.

    `metadata` becomes PNG text chunks; in JPEG and WebP it is JSON in EXIF's ImageDescription.
    The file appears whole or not at all. Raises ValueError for a wrong extension or metadata that
    the format can't hold, OutputError for a path that can't be written.
    """
    check_pixels(pixels)
    path = Path(path)
    options = _WRITERS[known_extension(path)]
    buffer = BytesIO()
    extra = metadata_options(metadata or {}, options["format"])
    try:
        Image.fromarray(pixels).save(buffer, **(options | extra))
    except (OSError, ValueError) as error:  # WebP ends at 16,383 pixels a side, JPEG at 65,535
        size = extent(pixels.shape[:2])
        raise ValueError(f"{options['format']} can't hold {size} pixels: use PNG") from error
    write_atomically(path, buffer.getvalue())


def write_atomically(path: Path, data: bytes) -> None:
    """Write bytes under a temporary name in the same folder, flush to disk, rename.

    Whatever interrupts it, the old file stays whole and the temporary one goes. Raises
    OutputError, naming the path, where the folder can't be written or the disk is full.
    """
    temporary = path.parent / f".pivotal-{secrets.token_hex(8)}.part"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # a folder that isn't one has no file to remove
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise OutputError(f"{quoted(path)} can't be written: {reason}") from error
        raise


def require_writable(path: str | Path) -> None:
    """Refuse an output path before work begins: OutputError names it and what is wrong."""
    target = Path(path)
    folder = target.parent
    if target.is_dir():
        raise OutputError(f"can't write {str(target)!r}: it is a folder; name a file")
    if not folder.is_dir():
        raise OutputError(f"can't write {str(target)!r}: there is no folder {str(folder)!r}")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"can't write {str(target)!r}: no permission in {str(folder)!r}")


def known_extension(path: Path) -> str:
    """The extension that says how a picture is written. Raises ValueError for any other."""
    extension = path.suffix.lower()
    if extension not in _WRITERS:
        raise ValueError(f"{quoted(path)} needs a known extension: {', '.join(_WRITERS)}")
    return extension
