"""Pictures that were sampled, on their way to files: what `generate` and `style` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .frames import Frames, animations
from .outputs import check_outputs, chosen, free, numbered, staged
from .terminal import Terminal

if TYPE_CHECKING:
    from pivotal.engine import Engine
    from pivotal.images import Pixels
    from pivotal.results import Generated


@dataclass(frozen=True)
class Places:
    """Every file that the command writes: a picture each, and an animation each if asked for."""

    pictures: list[Path]
    animations: list[Path]

    @staticmethod
    def checked(
        output: Path | None, default: str, count: int, animation: Path | None, *, force: bool
    ) -> Places:
        """Raises OutputError and ValueError before any work."""
        from pivotal.figures import animation_extension
        from pivotal.images import known_extension

        path = chosen(output, default, force=force)
        known_extension(path)
        if animation is not None:
            animation_extension(animation)
        pictures = numbered(path, count)
        if output is None and not force:
            pictures = [free(each) for each in pictures]
        animations = [] if animation is None else numbered(animation, count)
        check_outputs([*pictures, *animations], force=force)
        return Places(pictures, animations)

    def all(self) -> list[Path]:
        return [*self.pictures, *self.animations]

    def of(self, index: int) -> dict[str, str]:
        """The files of one picture, as its record names them."""
        named = {"picture": str(self.pictures[index])}
        return named | ({"animation": str(self.animations[index])} if self.animations else {})


def write(
    places: Places,
    engine: Engine,
    made: Generated,
    pictures: Sequence[Pixels],
    records: Sequence[dict[str, Any]],
    frames: Frames | None,
    terminal: Terminal,
    *,
    metadata: bool,
    force: bool,
) -> None:
    """pictures: those made, fitted to the size that is wanted."""
    from pivotal.figures import save_animation
    from pivotal.images import save_image
    from pivotal.records import embedded

    moving = animations(engine, frames, made.pictures, terminal)
    with staged(places.all(), terminal.interruption, force=force) as at:
        for index, path in enumerate(places.pictures):
            settings = embedded(records[index]) if metadata else None
            save_image(pictures[index], at[path], settings)
            if places.animations:
                place, shown = at[places.animations[index]], moving[index]
                save_animation(shown.frames, place, labels=shown.labels, metadata=settings)


def table(records: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table

    shown = Table("prompt", "seed", "sampler", "steps", "guidance", "seconds")
    for record in records:
        shown.add_row(
            record["prompt"],
            "" if record["seed"] is None else str(record["seed"]),
            record["sampler"],
            str(record["steps"]),
            f"{record['guidance_scale']:g}",
            f"{record['seconds']['total']:.1f}",
        )
    return shown
