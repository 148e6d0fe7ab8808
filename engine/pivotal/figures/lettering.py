"""Text on a picture: the one typeface, wrapping, and what to write for glyphs that it lacks."""

import unicodedata
from functools import cache

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

# Pillow's built-in typeface draws an empty box for all but ASCII and these.
_EXTRA_GLYPHS = frozenset("©«°±´·»‘’“”…‹›⁄™")
_SUBSTITUTES = str.maketrans(
    {"×": "x", "–": "-", "—": "-", "−": "-", "→": "->", "←": "<-", "≤": "<=", "≥": ">="}
    | {
        "≈": "~",
        "∞": "inf",
        "µ": "u",
        "μ": "u",
        "ß": "ss",
        "æ": "ae",
        "ø": "o",
        "ł": "l",
        "\t": " ",
    }
)


@cache
def typeface(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's built-in typeface at `size` pixels."""
    face = ImageFont.load_default(size=size)
    if not isinstance(face, ImageFont.FreeTypeFont):
        raise TypeError("this Pillow was built without FreeType and can't write text on a picture")
    return face


def drawable(text: str) -> str:
    """The text in glyphs that the typeface has: accents go, and what is left over becomes `?`."""
    plain = unicodedata.normalize("NFC", text).translate(_SUBSTITUTES)
    return "".join(_glyphs(character) for character in plain)


def _glyphs(character: str) -> str:
    if " " <= character <= "~" or character in _EXTRA_GLYPHS or character == "\n":
        return character
    parts = unicodedata.normalize("NFKD", character)
    return "".join(part for part in parts if " " <= part <= "~") or "?"


def wrap(text: str, size: int, width: int) -> list[str]:
    """Break text into lines of at most `width` pixels, inside a word only where it is wider."""
    face = typeface(size)
    lines: list[str] = []
    for paragraph in drawable(text).split("\n"):
        line = ""
        for word in paragraph.split():
            joined = f"{line} {word}" if line else word
            if face.getlength(joined) <= width:
                line = joined
                continue
            if line:
                lines.append(line)
            while len(word) > 1 and face.getlength(word) > width:
                fitting = _fitting(word, face, width)
                lines.append(word[:fitting])
                word = word[fitting:]
            line = word
        lines.append(line)
    return lines


def _fitting(word: str, face: ImageFont.FreeTypeFont, width: int) -> int:
    fitting, limit = 1, len(word)  # a line holds at least one glyph, or wrapping would not end
    while fitting < limit:
        middle = (fitting + limit + 1) // 2
        if face.getlength(word[:middle]) <= width:
            fitting = middle
        else:
            limit = middle - 1
    return fitting


def line_height(size: int) -> int:
    """Pixels from one baseline to the next."""
    return round(size * 1.4)


def write(
    canvas: Image.Image, at: tuple[int, int], lines: list[str], size: int, colour: Colour
) -> None:
    """Write lines downwards from their left upper corner."""
    draw = ImageDraw.Draw(canvas)
    left, top = at
    for number, line in enumerate(lines):
        draw.text((left, top + number * line_height(size)), line, fill=colour, font=typeface(size))


def visible(text: str) -> str:
    """The text as a page can show it: lone surrogates and control characters become U+FFFD."""
    return "".join("\ufffd" if _unprintable(character) else character for character in text)


def _unprintable(character: str) -> bool:
    return character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cs")
