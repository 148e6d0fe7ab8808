"""Pictures from outside and back: the one place that decodes an image.

Inside, a picture is uint8 RGB `[H, W, 3]` in sRGB; the networks see float32 `[B, 3, h, w]` in
[-1, 1].
"""

from .decoding import BACKGROUND
from .fitting import Fitted, fit
from .pixels import Mask, Pixels, check_pixels, from_tensor, psnr, to_tensor
from .reading import ImageSource, Picture, read_image
from .refusals import MAX_PIXELS, READABLE
from .settings import SETTINGS, metadata_options, read_settings
from .sizes import FitPolicy, Size, model_size, warn_if_far
from .writing import known_extension, require_writable, save_image, write_atomically

__all__ = [
    "BACKGROUND", "MAX_PIXELS", "READABLE",
    "ImageSource", "Picture", "read_image",
    "FitPolicy", "Fitted", "Size", "fit", "model_size", "warn_if_far",
    "Pixels", "Mask", "check_pixels", "to_tensor", "from_tensor", "psnr",
    "SETTINGS", "read_settings", "metadata_options",
    "save_image", "write_atomically", "require_writable", "known_extension",
]  # fmt: skip
