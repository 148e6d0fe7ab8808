"""How a picture was made, carried inside the picture: written, and read back."""

import json
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from .refusals import Unreadable, check_extent, quoted

SETTINGS = "pivotal"
"""The one key under which a picture carries its settings, as JSON."""
_EXIF_DESCRIPTION = 0x010E
_EXIF_LIMIT = 65_000  # bytes; a JPEG segment holds 65,533
_CARRIERS = ("PNG", "JPEG", "WEBP", "GIF")


def metadata_options(metadata: Mapping[str, str], kind: str) -> dict[str, Any]:
    """Pillow's options that save `metadata` in a PNG (text chunks), JPEG or WebP (EXIF) or GIF.

    Outside PNG it is JSON, in EXIF's ImageDescription or the GIF's comment. Raises ValueError for
    what the format can't hold.
    """
    if not metadata:
        return {}
    if kind == "PNG":
        return {"pnginfo": _text_chunks(metadata)}
    if kind == "GIF":
        return {"comment": json.dumps(dict(metadata)).encode("ascii")}
    exif = Image.Exif()
    exif[_EXIF_DESCRIPTION] = json.dumps(dict(metadata))
    encoded = exif.tobytes()
    if len(encoded) > _EXIF_LIMIT:
        raise ValueError(
            f"metadata takes {len(encoded)} bytes and {kind} holds {_EXIF_LIMIT}: use PNG"
        )
    return {"exif": encoded}


def read_settings(source: str | Path | bytes) -> dict[str, Any] | None:
    """The settings that a PNG, JPEG, WebP or GIF of pivotal's carries; None where it has none.

    Raises ValueError for what is no such picture, and for settings that are damaged.
    """
    name = "the image given as bytes" if isinstance(source, bytes) else quoted(source)
    try:
        if not isinstance(source, bytes) and Path(source).exists() and not Path(source).is_file():
            raise ValueError("it is not a file")  # a pipe would be waited on for ever
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{name} can't be opened: {reason}") from error
    try:
        with Image.open(BytesIO(data), formats=_CARRIERS) as image:
            check_extent((image.height, image.width), name)
            text = _carried(image)
    except Unreadable:
        raise
    except Exception as error:  # a decoder may raise anything on malformed bytes
        raise ValueError(
            f"{name} carries no settings: it is damaged, or no {', '.join(_CARRIERS)}"
        ) from error
    if text is None:
        return None
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"{name} carries damaged settings: they are no JSON object")
    return settings


def _text_chunks(metadata: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    text = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        if not re.fullmatch(r"[\x21-\x7e](?:[\x20-\x7e]{0,77}[\x21-\x7e])?", key):
            raise ValueError(f"metadata key {key!r} must be 1 to 79 printable ASCII characters")
        try:
            text.add_itxt(key, value)
        except UnicodeEncodeError as error:
            raise ValueError(f"metadata {key!r} holds {value!r}, which is no Unicode") from error
    return text


def _carried(image: Image.Image) -> str | None:
    if isinstance(image, PngImagePlugin.PngImageFile):
        image.load()  # text may stand behind the pixels
        found = image.text.get(SETTINGS)
        return None if found is None else str(found)
    described = image.info.get("comment") if image.format == "GIF" else _description(image)
    if isinstance(described, bytes):
        described = described.decode("ascii", "replace")
    try:
        document = json.loads(str(described))
    except ValueError:
        return None  # another program's description
    return document.get(SETTINGS) if isinstance(document, dict) else None


def _description(image: Image.Image) -> object:
    return image.getexif().get(_EXIF_DESCRIPTION)
