"""One frame of a PIL image, in whatever mode and profile, to upright sRGB."""

import logging
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

from .pixels import Pixels
from .refusals import Unreadable, check_extent, damaged
from .samples import quantise, within_unit

logger = logging.getLogger(__name__)
BACKGROUND = (255, 255, 255)
"""The colour under transparent pixels: white."""
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


def decode(image: Image.Image, name: str) -> Pixels:
    """Decode, turn upright, convert to sRGB, composite. uint8 `[H, W, 3]`."""
    check_extent((image.height, image.width), name)
    try:
        image.load()
        transposition = _UPRIGHT.get(_orientation(image, name))
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
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
    except Unreadable:
        raise
    except Exception as error:  # a decoder may raise anything on malformed bytes
        raise damaged(name, error) from error


def has_more_frames(image: Image.Image) -> bool:
    if image.format == "MPO":  # a photograph with its own previews, not an animation
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # damage after the frame that was read
        return True


def _orientation(image: Image.Image, name: str) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF is free-form: the picture itself may well be sound
        logger.warning("%s has damaged EXIF data; it is not rotated", name)
        return 1


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
    white, inverted = 65535, False  # a PPM's too: Pillow scales its own white to this one
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
    if image.mode == "I" or not within_unit(samples):
        kind = "32-bit integers" if image.mode == "I" else "floats outside [0, 1]"
        raise Unreadable(
            f"{name} holds {kind}, which have no agreed white: save it with 8 or 16 bit"
        )
    return Image.fromarray(quantise(samples))


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
