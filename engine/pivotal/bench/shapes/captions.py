"""What a scene is called, in many wordings, between which words are swapped, added and dropped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pivotal.bench.shapes.scenes import SIDE, Background, Scene, Thing

LEAD_INS = ("a picture of", "a drawing of", "an image of", "a painting of")
ARTICLES = ("a", "the", "one")
SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
}
SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "big", "huge"),
}
TEXTURE_WORDS = {
    "plain": ("plain", "smooth"),
    "gradient": ("shaded", "gradient"),
    "striped": ("striped",),
    "speckled": ("speckled", "dotted"),
    "checkered": ("checkered",),
}
GROUND_WORDS = ("background", "backdrop")
ON = ("on", "against", "over", "in front of")


@dataclass(frozen=True)
class Wording:
    """How often a caption departs from its plainest form, each a probability."""

    canonical: float = 0.3
    lead_in: float = 0.15
    other_article: float = 0.1
    synonym: float = 0.12
    size: float = 0.3
    texture: float = 0.25
    place: float = 0.12
    ground_first: float = 0.1
    no_ground: float = 0.05
    no_colour: float = 0.04
    no_shape: float = 0.03
    relation: float = 0.7


PLAIN = Wording(
    canonical=0, lead_in=0, other_article=0, synonym=0, size=0, texture=0, place=0,
    ground_first=0, no_ground=0, no_colour=0, no_shape=0, relation=1,
)  # fmt: skip
VARIED = Wording()


def canonical_caption(scene: Scene, size: bool = False) -> str:
    """The plainest wording: "a red circle on a gray background", with the size if asked for."""
    phrases = [
        _with_article((f"{thing.size} " if size else "") + f"{thing.colour} {thing.shape}")
        for thing in scene.objects
    ]
    return " to the left of ".join(phrases) + f" on a {scene.background.colour} background"


def caption(scene: Scene, rng: np.random.Generator, wording: Wording = VARIED) -> str:
    """One of the scene's captions; it says nothing untrue, and may leave things out."""
    if rng.random() < wording.canonical:
        wording = PLAIN
    subject = _subject(scene, rng, wording)
    ground = _ground_phrase(scene.background, rng, wording)
    if rng.random() < wording.no_ground:
        text = subject
    elif rng.random() < wording.ground_first:
        text = f"{ground} with {subject}"
    else:
        text = f"{subject} {_pick(rng, ON, wording.synonym)} {ground}"
    if rng.random() < wording.lead_in:
        text = f"{LEAD_INS[int(rng.integers(len(LEAD_INS)))]} {text}"
    return text


def _subject(scene: Scene, rng: np.random.Generator, wording: Wording) -> str:
    phrases = [_thing_phrase(thing, rng, wording) for thing in scene.objects]
    if len(phrases) == 1:
        if rng.random() < wording.place:
            return f"{phrases[0]} {_place_phrase(scene.objects[0])}"
        return phrases[0]
    left, right = phrases
    if rng.random() < wording.relation:
        if wording is PLAIN or rng.random() < 0.6:
            return f"{left} to the left of {right}"
        return f"{right} to the right of {left}"
    if rng.random() < 0.5:
        left, right = right, left
    return f"{left} {('and', 'next to', 'beside')[int(rng.integers(3))]} {right}"


def _thing_phrase(thing: Thing, rng: np.random.Generator, wording: Wording) -> str:
    words = []
    if rng.random() < wording.size:
        words.append(_pick(rng, SIZE_WORDS[thing.size], 0.3))
    unsaid = rng.random()
    if unsaid >= wording.no_colour:
        words.append(thing.colour)
    if wording.no_colour <= unsaid < wording.no_colour + wording.no_shape:
        words.append("shape")
    else:
        words.append(_pick(rng, SHAPE_WORDS[thing.shape], wording.synonym))
    return _with_article(" ".join(words), _pick(rng, ARTICLES, wording.other_article))


def _ground_phrase(ground: Background, rng: np.random.Generator, wording: Wording) -> str:
    words = [ground.colour, _pick(rng, GROUND_WORDS, wording.synonym)]
    if rng.random() < wording.texture:
        words.insert(0, _pick(rng, TEXTURE_WORDS[ground.texture], 0.3))
    return _with_article(" ".join(words), _pick(rng, ARTICLES, wording.other_article))


def _place_phrase(thing: Thing) -> str:
    near = 5.0
    across = "left" if thing.x < SIDE / 2 - near else "right" if thing.x > SIDE / 2 + near else ""
    down = "top" if thing.y < SIDE / 2 - near else "bottom" if thing.y > SIDE / 2 + near else ""
    if across and down:
        return f"at the {down} {across}"
    if across or down:
        return f"at the {across or down}"
    return "in the middle"


def _with_article(phrase: str, article: str = "a") -> str:
    if article == "a" and phrase[0] in "aeiou":
        article = "an"
    return f"{article} {phrase}"


def _pick(rng: np.random.Generator, options: tuple[str, ...], other: float) -> str:
    """The first option, or with the given probability one of the others."""
    if len(options) > 1 and rng.random() < other:
        return options[1 + int(rng.integers(len(options) - 1))]
    return options[0]
