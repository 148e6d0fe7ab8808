"""`--animation`: the latents of each step, kept while a picture comes about, then shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pivotal.engine import Engine
    from pivotal.images import Pixels

    from .terminal import Terminal

MAX_FRAMES = 25
"""More steps are thinned out: to decode each is what costs."""


class Frames:
    """A `callback_on_step_end` that remembers latents [R, C, h, w] and changes nothing.

    edits: each batch's first row is the source, and is not shown.
    """

    def __init__(self, *, edits: bool) -> None:
        self._first = int(edits)
        self._batches: list[list[Any]] = []
        self._last = -1

    def __call__(
        self, engine: Engine, step: int, timestep: float, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        if not self._batches or step <= self._last:  # methods that skip steps have no step 0
            self._batches.append([])
        self._last = step
        self._batches[-1].append(tensors["latents"].detach().float().cpu().clone())
        return {}

    def trajectories(self) -> list[list[Any]]:
        """For each picture, its latents [1, C, h, w] step by step."""
        return [
            [latents[row : row + 1] for latents in batch]
            for batch in self._batches
            for row in range(self._first, len(batch[0]))
        ]


def shown_steps(steps: int) -> list[int]:
    """At most MAX_FRAMES of the steps, evenly, the last among them."""
    count = min(steps, MAX_FRAMES)
    return [((index + 1) * steps) // count - 1 for index in range(count)]


class Animation(NamedTuple):
    """Frames, uint8 [H, W, 3], and what stands under each."""

    frames: list[Pixels]
    labels: list[str]


def animations(
    engine: Engine, frames: Frames | None, pictures: Sequence[Pixels], terminal: Terminal
) -> list[Animation]:
    """The remembered ways to the pictures, decoded; each ends with its picture."""
    if frames is None:
        return []
    ways = zip(frames.trajectories(), pictures, strict=True)
    return [_animation(engine, way, last, terminal) for way, last in ways]


def _animation(
    engine: Engine, trajectory: list[Any], last: Pixels, terminal: Terminal
) -> Animation:
    import numpy as np

    from pivotal.query import Progress

    chosen, frames = shown_steps(len(trajectory)), []
    with terminal.progress() as bar:
        for index, step in enumerate(chosen[:-1]):
            bar(Progress("decode", index, len(chosen)))
            (picture,) = engine.decode(trajectory[step])
            frames.append(np.array(picture))
    labels = [f"step {step + 1} of {len(trajectory)}" for step in chosen]
    return Animation([*frames, last], labels)
