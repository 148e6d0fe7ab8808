"""A trajectory as a moving picture: an animated GIF or WebP, the last frame held."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, features

from pivotal.figures.lettering import line_height, wrap, write
from pivotal.figures.palette import INK, PAPER
from pivotal.images import Pixels, check_pixels, metadata_options, write_atomically

MAX_FRAMES = 1000
MAX_TOTAL_PIXELS = 200_000_000
"""Of all frames together: 600 MB of RGB while the file is put together."""
_KINDS = {".gif": "GIF", ".webp": "WEBP"}
_SHORTEST = 20  # milliseconds; browsers show a shorter GIF frame for 100
_LONGEST = 60_000
_OPTIONS: dict[str, dict[str, Any]] = {
    "GIF": {"optimize": False, "disposal": 1},
    "WEBP": {"lossless": False, "quality": 90, "method": 4},
}
_LETTERS, _AIR = 15, 6  # pixels


def animation_extension(path: str | Path) -> str:
    """The extension that says how an animation is written. Raises ValueError for any other."""
    extension = Path(path).suffix.lower()
    if extension not in _KINDS:
        raise ValueError(f"an animation is a .gif or .webp file, and {str(path)!r} is neither")
    return extension


def save_animation(
    frames: Sequence[Pixels],
    path: str | Path,
    *,
    milliseconds: int = 80,
    hold_milliseconds: int = 1500,
    labels: Sequence[str] | None = None,
    side: int = 256,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write frames, uint8 `[H, W, 3]` of one size, as an endless GIF or WebP, by the extension.

    Each frame stays for `milliseconds`, the last for `hold_milliseconds`. Frames smaller than
    `side` pixels grow by a whole factor without smoothing, larger ones keep their size. `labels`,
    one a frame, stand under the picture. The same frames give the same bytes. A GIF holds 256
    colours a frame and times in hundredths of a second; a WebP is compressed at quality 90.
    `metadata` becomes a comment in a GIF, EXIF in a WebP.

    The file appears whole or not at all. Raises ValueError for frames, labels, times or an
    extension that can't be served, OutputError for a path that can't be written.
    """
    path = Path(path)
    kind = _KINDS[animation_extension(path)]
    _check(frames, labels, side)
    for name, value in (("milliseconds", milliseconds), ("hold_milliseconds", hold_milliseconds)):
        if not _SHORTEST <= value <= _LONGEST:
            raise ValueError(f"{name} is {value}: give {_SHORTEST} to {_LONGEST}")
    if kind == "WEBP" and not features.check("webp"):
        raise ValueError(f"this Pillow can't write WebP, so not {str(path)!r}: use .gif")
    pictures = _pictures(frames, labels, side)
    durations = [milliseconds] * (len(pictures) - 1) + [hold_milliseconds]
    extra = metadata_options(metadata or {}, kind)
    if kind == "GIF":
        dithered = _factor(frames[0].shape[:2], side) == 1  # enlarged pixels would show the noise
        pictures = [_with_palette(picture, dithered=dithered) for picture in pictures]
    buffer = BytesIO()
    try:
        pictures[0].save(
            buffer,
            kind,
            save_all=True,
            append_images=pictures[1:],
            duration=durations,
            loop=0,
            **_OPTIONS[kind],
            **extra,
        )
    except (OSError, ValueError) as error:  # WebP ends at 16,383 pixels a side, GIF at 65,535
        size = f"{pictures[0].height} x {pictures[0].width}"
        raise ValueError(f"{kind} can't hold frames of {size} pixels: make them smaller") from error
    write_atomically(path, buffer.getvalue())


def _check(frames: Sequence[Pixels], labels: Sequence[str] | None, side: int) -> None:
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise ValueError(f"an animation of {len(frames)} frames: give 1 to {MAX_FRAMES}")
    for frame in frames:
        check_pixels(frame)
    sizes = sorted({frame.shape[:2] for frame in frames})
    if len(sizes) > 1:
        found = ", ".join(f"{height} x {width}" for height, width in sizes[:3])
        raise ValueError(f"frames of an animation have one size, and these have {found}")
    if labels is not None and len(labels) != len(frames):
        raise ValueError(f"{len(labels)} labels for {len(frames)} frames: give one each")
    if not 16 <= side <= 4096:
        raise ValueError(f"frames of {side} pixels: give a side of 16 to 4096")
    factor = _factor(sizes[0], side)
    total = len(frames) * sizes[0][0] * sizes[0][1] * factor**2
    if total > MAX_TOTAL_PIXELS:
        raise ValueError(
            f"{len(frames)} frames hold {total} pixels together, and at most "
            f"{MAX_TOTAL_PIXELS} are animated: give fewer or smaller ones"
        )


def _factor(size: tuple[int, ...], side: int) -> int:
    return max(1, side // max(size))


def _pictures(
    frames: Sequence[Pixels], labels: Sequence[str] | None, side: int
) -> list[Image.Image]:
    height, width = (extent * _factor(frames[0].shape[:2], side) for extent in frames[0].shape[:2])
    grown = [
        Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST) for frame in frames
    ]
    if labels is None:
        return grown
    lines = [wrap(label, _LETTERS, max(width - 2 * _AIR, 1)) for label in labels]
    foot = max(map(len, lines)) * line_height(_LETTERS) + 2 * _AIR
    pictures = []
    for picture, text in zip(grown, lines, strict=True):
        canvas = Image.new("RGB", (width, height + foot), PAPER)
        canvas.paste(picture, (0, 0))
        write(canvas, (_AIR, height + _AIR), text, _LETTERS, INK)
        pictures.append(canvas)
    return pictures


def _with_palette(picture: Image.Image, *, dithered: bool) -> Image.Image:
    palette = picture.quantize(256, Image.Quantize.MEDIANCUT)
    if not dithered:
        return palette
    return picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
