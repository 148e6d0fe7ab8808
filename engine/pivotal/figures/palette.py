"""The colours and sizes that sheets and animations share."""

from PIL import Image

from pivotal.figures.lettering import Colour

PAPER: Colour = (251, 251, 249)
INK: Colour = (28, 29, 33)
MUTED: Colour = (96, 99, 108)
HAIRLINE: Colour = (222, 223, 226)
ACCENT: Colour = (221, 84, 39)

MARGIN = 56  # pixels, as all below
GAP = 28
TITLE, LABEL, TEXT, SMALL = 40, 26, 22, 19


def blank_strip(inside: int, height: int) -> Image.Image:
    """Paper for a content `inside` pixels wide, with the sheet's margins at both sides."""
    return Image.new("RGB", (inside + 2 * MARGIN, height), PAPER)
