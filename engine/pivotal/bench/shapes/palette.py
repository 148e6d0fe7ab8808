"""The words of the shapes world: shapes, colours, sizes, textures, and what training never sees."""

from __future__ import annotations

RGB = tuple[int, int, int]

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")

COLOURS: dict[str, RGB] = {
    "red": (214, 32, 36),
    "orange": (250, 136, 12),
    "yellow": (250, 226, 40),
    "green": (40, 160, 62),
    "turquoise": (36, 206, 212),
    "blue": (32, 84, 224),
    "purple": (134, 42, 172),
    "pink": (250, 128, 190),
}

BACKGROUNDS: dict[str, RGB] = {
    "gray": (126, 128, 130),
    "white": (240, 240, 238),
    "black": (22, 22, 24),
    "beige": (224, 208, 176),
    "brown": (98, 66, 44),
    "navy": (20, 28, 70),
}

RADII: dict[str, float] = {"small": 10.0, "medium": 14.0, "large": 19.0}

TEXTURES: tuple[str, ...] = ("plain", "gradient", "striped", "speckled", "checkered")

Triple = tuple[str, str, str]


def is_held_out(shape: str, colour: str, background: str) -> bool:
    """Whether a (shape, colour, background) triple is kept from training.

    A Latin-square rule: each shape on each background misses exactly one colour, 36 triples of 288,
    so every pair of words is trained and only the combination of three is new.
    """
    place = (
        SHAPES.index(shape)
        + 3 * list(COLOURS).index(colour)
        + 5 * list(BACKGROUNDS).index(background)
    )
    return place % 8 == 3


def held_out_triples() -> list[Triple]:
    """All triples that training never sees, in a fixed order."""
    return [
        (shape, colour, background)
        for shape in SHAPES
        for colour in COLOURS
        for background in BACKGROUNDS
        if is_held_out(shape, colour, background)
    ]
