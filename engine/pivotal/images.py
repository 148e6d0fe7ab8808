"""Pictures from outside and back: the one place that decodes an image, fits it to a model, and
writes a result.

Inside, a picture is uint8 RGB `[H, W, 3]` in sRGB; the networks see float32 `[B, 3, h, w]` in
[-1, 1].
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from pivotal.errors import NonFiniteError, OutputError

logger = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]  # RGB, [H, W, 3]
Mask = npt.NDArray[np.bool_]  # [H, W]
ImageSource = str | Path | bytes | Image.Image | npt.NDArray[np.generic] | torch.Tensor
FitPolicy = Literal["crop", "pad", "stretch"]

MAX_PIXELS = 64_000_000
"""The largest picture that is decoded: 192 MB of RGB. A header that promises more is refused."""

BACKGROUND = (255, 255, 255)
"""The colour under transparent pixels: white."""

READABLE = "PNG, JPEG, WebP, GIF, BMP and TIFF"
_DECODERS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

_RANGE_SLACK = 1e-6  # float32 arithmetic may end a hair outside [0, 1]

_WRITERS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": "4:4:4"},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": "4:4:4"},
    ".webp": {"format": "WEBP", "lossless": True},
}
_EXIF_DESCRIPTION = 0x010E
_EXIF_LIMIT = 65_000  # bytes; a JPEG segment holds 65,533

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


@dataclass(frozen=True)
class Picture:
    """An image from outside, decoded once. Two pictures are equal when their pixels and names are.

    `pixels` is read-only uint8 RGB `[H, W, 3]`; `digest` is the SHA-256 (hex) of pixels and shape;
    `name` is the file's name, or what was given instead of a file.
    """

    pixels: Pixels = field(compare=False, repr=False)
    digest: str
    name: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True)
class Fitted:
    """A picture brought to a model's size, and what was done to it.

    `pixels` is read-only uint8 `[h, w, 3]`. `box` is the part of the source that was kept, in
    source pixels, and `inner` the part of the result that it fills, both (left, top, right,
    bottom). Cropping has the whole result as `inner`, padding the whole source as `box`.
    """

    pixels: Pixels = field(compare=False, repr=False)
    policy: FitPolicy
    source_size: tuple[int, int]
    box: tuple[int, int, int, int]
    inner: tuple[int, int, int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the fitted picture."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def unfit(self, pixels: Pixels) -> Pixels:
        """Bring a result of the fitted size back to the source's scale.

        Padding is cut away and stretching undone, so the answer has the source's size. What
        cropping cut off is not in the result, so there the answer has the size of `box`.
        """
        check_pixels(pixels)
        if pixels.shape[:2] != self.size:
            raise ValueError(
                f"a result of {_extent(pixels.shape[:2])} can't be brought back: the picture was "
                f"fitted to {_extent(self.size)}"
            )
        left, top, right, bottom = self.box
        return _resize(_cut(pixels, self.inner), (bottom - top, right - left))


# Reading


def read_image(source: ImageSource) -> Picture:
    """Decode a file, encoded bytes, a PIL image, an array or a tensor to upright sRGB.

    EXIF rotation and ICC profiles are applied, transparency is composited on `BACKGROUND`, 16-bit
    samples are scaled, and of an animation the first frame is taken, with a logged warning.
    Arrays are `[H, W, 3]`, tensors `[3, H, W]` or `[1, 3, H, W]`: uint8, or floats in [0, 1].
    No URL is fetched.

    Raises ValueError, in one sentence that names the source, for whatever can't be read.
    """
    match source:
        case str() | Path():
            pixels, name = _read_file(source), Path(source).name
        case bytes():
            name = "the image given as bytes"
            pixels = _read_stream(BytesIO(source), len(source), name)
        case Image.Image():
            name = Path(str(getattr(source, "filename", "") or "image")).name
            pixels = _read_pil(source, name)
        case np.ndarray():
            name = "array"
            pixels = _from_samples(source, name, "[H, W, 3]")
        case torch.Tensor():
            name = "tensor"
            pixels = _from_samples(_channels_last(source), name, "[3, H, W] or [1, 3, H, W]")
        case _:
            raise ValueError(
                f"can't read an image from type {type(source).__name__}: give a path, bytes, a PIL "
                f"image, a numpy array or a torch tensor"
            )
    pixels = np.ascontiguousarray(pixels)
    pixels.flags.writeable = False
    height, width, _ = pixels.shape
    digest = hashlib.sha256(f"{height}x{width}x3 uint8 RGB\n".encode())
    digest.update(pixels.data)
    return Picture(pixels, digest.hexdigest(), name)


def _read_file(source: str | Path) -> Pixels:
    name = _quoted(source)
    if isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]*://|data:", source, re.IGNORECASE):
        raise ValueError(f"{name} is a URL, and none is fetched: download it and give the file")
    try:
        path = Path(source)
        if not path.exists():
            raise ValueError(f"{name} does not exist: give the path of an image file")
        if not path.is_file():
            raise ValueError(f"{name} is not a file: give the path of an image file")
        with path.open("rb") as stream:
            return _read_stream(stream, os.fstat(stream.fileno()).st_size, name)
    except OSError as error:
        raise ValueError(f"{name} can't be opened: {error.strerror or error}") from error


def _read_stream(stream: BinaryIO, length: int, name: str) -> Pixels:
    if length == 0:
        raise ValueError(f"{name} is empty (0 bytes): give an image in {READABLE}")
    try:
        image = Image.open(stream, formats=_DECODERS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    except UnidentifiedImageError as error:
        stream.seek(0)
        what = _foreign_format(stream.read(32)) or "not an image, or damaged at its start"
        raise ValueError(
            f"{name} can't be read, as it is {what}: accepted are {READABLE}"
        ) from error
    except Exception as error:  # a decoder may raise anything on malformed bytes
        raise _damaged(name, error) from error
    with image:
        pixels = _read_pil(image, name)
        if _has_more_frames(image):
            logger.warning("%s has several frames or pages; only the first is read", name)
        return pixels


def _read_pil(image: Image.Image, name: str) -> Pixels:
    """Decode, turn upright, convert to sRGB, composite. uint8 `[H, W, 3]`."""
    _check_extent((image.height, image.width), name)
    try:
        image.load()
        transposition = _UPRIGHT.get(_orientation(image, name))
        if image.mode.startswith("I;16"):
            colour, alpha = _from_16_bit(image)
        elif image.mode in ("I", "F"):
            colour, alpha = _from_wide(image, name), None
        else:
            colour, alpha = _split_alpha(image)
        upright = _to_srgb(colour, image.info.get("icc_profile"), name)
        if alpha is not None:
            ground = Image.new("RGB", upright.size, BACKGROUND)
            upright = Image.composite(upright, ground, alpha)
        if transposition is not None:
            upright = upright.transpose(transposition)
        return np.array(upright, dtype=np.uint8)
    except _Unreadable:
        raise
    except Exception as error:  # a decoder may raise anything on malformed bytes
        raise _damaged(name, error) from error


class _Unreadable(ValueError):
    """Already a clear sentence: passes through the net around the decoders."""


def _damaged(name: str, error: Exception) -> ValueError:
    told = " ".join(str(error).split())
    short = "truncated" in told.lower() or isinstance(error, EOFError)
    state = (
        "truncated: its end is missing" if short else f"damaged ({told or type(error).__name__})"
    )
    return ValueError(f"{name} is {state}")


def _too_large(name: str, size: tuple[int, int] | None = None) -> ValueError:
    holds = f"has {_extent(size)} pixels" if size else "has too many pixels"
    return _Unreadable(
        f"{name} {holds}, and at most {MAX_PIXELS // 1_000_000} million are decoded: scale it down"
    )


def _check_extent(size: tuple[int, int], name: str) -> None:
    if min(size) < 1:
        raise _Unreadable(f"{name} has no pixels ({_extent(size)})")
    if math.prod(size) > MAX_PIXELS:
        raise _too_large(name, size)


def _foreign_format(head: bytes) -> str | None:
    """Name what people most often give instead of an accepted format."""
    if head[4:8] == b"ftyp":
        return "AVIF" if head[8:11] == b"avi" else "HEIC or a video"
    signatures = {b"%PDF": "a PDF", b"8BPS": "a Photoshop file", b"<svg": "SVG", b"<?xml": "XML"}
    signatures |= {b"\x00\x00\x00\x0cJXL": "JPEG XL", b"\x00\x00\x00\x0cjP": "JPEG 2000"}
    return next((what for magic, what in signatures.items() if head.startswith(magic)), None)


def _orientation(image: Image.Image, name: str) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF is free-form: the picture itself may well be sound
        logger.warning("%s has damaged EXIF data; it is not rotated", name)
        return 1


def _has_more_frames(image: Image.Image) -> bool:
    if image.format == "MPO":  # a photograph with its own previews, not an animation
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # damage after the frame that was read
        return True


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colour in L, RGB, CMYK or LAB, and its opacity in L where it has one."""
    if image.mode == "La":
        image = image.convert("LA")
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        colour = layered.getchannel("R") if grey else layered.convert("RGB")
        return colour, layered.getchannel("A")
    if grey:
        return image.convert("L"), None
    if image.mode in ("CMYK", "LAB"):
        return image, None
    return image.convert("RGB"), None


def _from_16_bit(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    samples = np.asarray(image).astype(np.float32)
    white, inverted = 65535, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        white = 2 ** int(image.tag_v2.get(_TIFF_BITS, (16,))[0]) - 1
        inverted = image.tag_v2.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
    scaled = np.rint(samples * (255 / white)).clip(0, 255).astype(np.uint8)
    grey = Image.fromarray(255 - scaled if inverted else scaled)
    hidden = image.info.get("transparency")
    if not isinstance(hidden, int):
        return grey, None
    return grey, Image.fromarray(np.where(samples == hidden, 0, 255).astype(np.uint8))


def _from_wide(image: Image.Image, name: str) -> Image.Image:
    samples = np.asarray(image)
    if image.mode == "I" or not _within_unit(samples):
        kind = "32-bit integers" if image.mode == "I" else "floats outside [0, 1]"
        raise _Unreadable(
            f"{name} holds {kind}, which have no agreed white: save it with 8 or 16 bit"
        )
    return Image.fromarray(_quantise(samples))


def _to_srgb(colour: Image.Image, profile: bytes | None, name: str) -> Image.Image:
    """Apply an ICC profile. One that is damaged or of another colour space is left out, aloud."""
    if colour.mode == "LAB" and not profile:
        return _transform(colour, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    if not profile:
        return colour.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space == "RGB" and colour.mode == "L":
            colour = colour.convert("RGB")
        if {"GRAY": "L", "Lab": "LAB"}.get(space, space) != colour.mode:
            raise ValueError(f"it is for {space}, the picture is {colour.mode}")
        return _transform(colour, source)
    except Exception as error:  # profiles are as free-form as EXIF
        logger.warning(
            "%s has an ICC profile that can't be applied (%s); its colours are taken as sRGB",
            name,
            error,
        )
        return colour.convert("RGB")


def _transform(colour: Image.Image, source: ImageCms.ImageCmsProfile) -> Image.Image:
    target = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(colour, source, target, outputMode="RGB")
    if converted is None:
        raise ValueError("the colour engine gave no picture")
    return converted


def _channels_last(tensor: torch.Tensor) -> npt.NDArray[np.generic]:
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


def _from_samples(values: npt.NDArray[np.generic], name: str, shape: str) -> Pixels:
    if values.ndim != 3 or values.shape[2] != 3:
        raise ValueError(f"{name} has shape {list(values.shape)}: give {shape}")
    _check_extent((values.shape[0], values.shape[1]), name)
    if values.dtype == np.uint8:
        return np.array(values, dtype=np.uint8)
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{name} has dtype {values.dtype}: give uint8, or floats in [0, 1]")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinity: give finite values in [0, 1]")
    if not _within_unit(values):
        raise ValueError(
            f"{name} holds values from {values.min():g} to {values.max():g}: give [0, 1]"
        )
    return _quantise(values)


def _within_unit(values: npt.NDArray[np.generic]) -> bool:
    """False for NaN, too."""
    return bool(values.min() >= -_RANGE_SLACK and values.max() <= 1 + _RANGE_SLACK)


def _quantise(values: npt.NDArray[np.generic]) -> Pixels:
    return np.rint(values.astype(np.float32) * 255).clip(0, 255).astype(np.uint8)


# To a model's size and back


def fit(picture: Picture, size: tuple[int, int], policy: FitPolicy = "crop") -> Fitted:
    """Bring a picture to a model's size (height, width), antialiased (Lanczos).

    `crop` cuts the centre out in the wanted aspect, `pad` keeps all and repeats the edges,
    `stretch` changes the aspect. A picture that has the size already is not touched.
    Raises ValueError for an unknown policy or an impossible size.
    """
    if policy not in get_args(FitPolicy):
        raise ValueError(f"fit policy {policy!r} is unknown: give one of {get_args(FitPolicy)}")
    if len(size) != 2 or min(size) < 1 or math.prod(size) > MAX_PIXELS:
        raise ValueError(
            f"can't fit to {size}: give (height, width) of at most {MAX_PIXELS} pixels"
        )
    (height, width), (source_height, source_width) = size, picture.size
    box = (0, 0, source_width, source_height)
    inner = (0, 0, width, height)
    if policy == "crop":
        scale = min(source_height / height, source_width / width)
        box = _centred((source_height, source_width), height * scale, width * scale)
    if policy == "pad":
        scale = min(height / source_height, width / source_width)
        inner = _centred(size, source_height * scale, source_width * scale)
    left, top, right, bottom = inner
    pixels = _resize(_cut(picture.pixels, box), (bottom - top, right - left))
    margins = ((top, height - bottom), (left, width - right), (0, 0))
    pixels = np.pad(pixels, margins, mode="edge")
    pixels.flags.writeable = False
    return Fitted(pixels, policy, picture.size, box, inner)


def _centred(within: tuple[int, int], height: float, width: float) -> tuple[int, int, int, int]:
    rows = min(max(round(height), 1), within[0])
    columns = min(max(round(width), 1), within[1])
    top, left = (within[0] - rows) // 2, (within[1] - columns) // 2
    return left, top, left + columns, top + rows


def _cut(pixels: Pixels, box: tuple[int, int, int, int]) -> Pixels:
    left, top, right, bottom = box
    return pixels[top:bottom, left:right]


def _resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    if pixels.shape[:2] == size:
        return pixels.copy()
    resized = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return np.array(resized, dtype=np.uint8)


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
        raise ValueError(f"can't compare {_extent(a.shape[:2])} with {_extent(b.shape[:2])} pixels")
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


# Writing


def save_image(pixels: Pixels, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write uint8 `[H, W, 3]` as PNG, JPEG (quality 95) or lossless WebP, by the extension.

    `metadata` becomes PNG text chunks; in JPEG and WebP it is JSON in EXIF's ImageDescription.
    The file appears whole or not at all. Raises ValueError for a wrong extension or metadata that
    the format can't hold, OutputError for a path that can't be written.
    """
    check_pixels(pixels)
    path = Path(path)
    options = _WRITERS.get(path.suffix.lower())
    if options is None:
        raise ValueError(f"{_quoted(path)} needs a known extension: {', '.join(_WRITERS)}")
    buffer = BytesIO()
    extra = _metadata_options(metadata or {}, options["format"])
    try:
        Image.fromarray(pixels).save(buffer, **(options | extra))
    except (OSError, ValueError) as error:  # WebP ends at 16,383 pixels a side, JPEG at 65,535
        size = _extent(pixels.shape[:2])
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
            raise OutputError(f"{_quoted(path)} can't be written: {reason}") from error
        raise


def _metadata_options(metadata: Mapping[str, str], kind: str) -> dict[str, Any]:
    if not metadata:
        return {}
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        for key, value in metadata.items():
            if not re.fullmatch(r"[\x21-\x7e](?:[\x20-\x7e]{0,77}[\x21-\x7e])?", key):
                raise ValueError(f"metadata key {key!r} must be 1 to 79 printable ASCII characters")
            text.add_itxt(key, value)
        return {"pnginfo": text}
    exif = Image.Exif()
    exif[_EXIF_DESCRIPTION] = json.dumps(dict(metadata))
    encoded = exif.tobytes()
    if len(encoded) > _EXIF_LIMIT:
        raise ValueError(
            f"metadata takes {len(encoded)} bytes and {kind} holds {_EXIF_LIMIT}: use PNG"
        )
    return {"exif": encoded}


def check_pixels(pixels: Pixels) -> None:
    """Raise ValueError unless these are uint8 `[H, W, 3]` with at least one pixel."""
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        kind = getattr(pixels, "dtype", type(pixels).__name__)
        raise ValueError(f"pixels are {kind}: give a uint8 array [H, W, 3]")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ValueError(f"pixels have shape {list(pixels.shape)}: give [H, W, 3]")


def _extent(size: tuple[int, ...]) -> str:
    return f"{size[0]} x {size[1]}"


def _quoted(source: str | Path) -> str:
    text = str(source)
    return repr(text if len(text) <= 200 else f"{text[:200]}...")


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
