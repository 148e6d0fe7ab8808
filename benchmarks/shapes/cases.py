"""The fixed cases of the evaluation: held-out scenes, the edits asked of them, and prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pivotal.bench.shapes.captions import canonical_caption
from pivotal.bench.shapes.palette import BACKGROUNDS, COLOURS, SHAPES, held_out_triples
from pivotal.bench.shapes.scenes import Scene, sample_held_out

EVALUATION_SEED = 2024
TUNING_SEED = 77  # scenes on which an edit's settings may be chosen; never those reported


@dataclass(frozen=True)
class EditCase:
    """One word of a scene's caption swapped, and the scene as it should then look."""

    scene: Scene
    kind: Literal["colour", "shape"]
    wanted: Scene

    @property
    def prompt(self) -> str:
        return canonical_caption(self.scene)

    @property
    def target(self) -> str:
        return canonical_caption(self.wanted)

    @property
    def words(self) -> tuple[str, ...]:
        """The object's words in both prompts: what LocalBlend is to bound."""
        before, after = self.scene.objects[0], self.wanted.objects[0]
        return tuple(dict.fromkeys((before.colour, before.shape, after.colour, after.shape)))


def edit_cases(count: int, seed: int = EVALUATION_SEED) -> list[EditCase]:
    """Held-out single-object scenes, colour and shape swaps by turns."""
    rng = np.random.default_rng(seed)
    triples = held_out_triples()
    order = [int(place) for place in rng.permutation(len(triples))]
    cases = []
    for number in range(count):
        scene = sample_held_out(rng, triples[order[number % len(order)]])
        thing = scene.objects[0]
        if number % 2 == 0:
            others = [name for name in COLOURS if name != thing.colour]
            colour = others[int(rng.integers(len(others)))]
            changed = replace(thing, colour=colour, rgb=COLOURS[colour])
        else:
            others = [name for name in SHAPES if name != thing.shape]
            changed = replace(thing, shape=others[int(rng.integers(len(others)))])
        kind: Literal["colour", "shape"] = "shape" if number % 2 else "colour"
        cases.append(EditCase(scene, kind, Scene((changed,), scene.background)))
    return cases


@dataclass(frozen=True)
class PromptCase:
    """A single-object prompt and what it asks for."""

    prompt: str
    shape: str
    colour: str
    background: str


def prompt_cases(count: int, seed: int = EVALUATION_SEED) -> list[PromptCase]:
    """Canonical prompts drawn evenly over all 288 triples."""
    rng = np.random.default_rng(seed)
    triples = [(s, c, b) for s in SHAPES for c in COLOURS for b in BACKGROUNDS]
    chosen = [triples[int(i)] for i in rng.permutation(len(triples))[:count]]
    return [
        PromptCase(f"{'an' if c[0] in 'aeiou' else 'a'} {c} {s} on a {b} background", s, c, b)
        for s, c, b in chosen
    ]
