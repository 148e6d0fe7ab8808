"""What an edit keeps of its source: options that `edit` and `explain` share, and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .completion import complete_kinds
from .values import numbers, prompt_text

if TYPE_CHECKING:
    from pivotal.editing.edit import Edit
    from pivotal.images import Fitted


@dataclass(frozen=True)
class EditOptions:
    """What of the source is kept, where and for how long. The same for every target."""

    kind: Annotated[
        str,
        typer.Option(
            help="`auto`, `swap`, `refine`, `reweight`.",
            autocompletion=complete_kinds,
        ),
    ] = "auto"
    cross_replace_steps: Annotated[
        float, typer.Option(help="Share of the steps with the source's cross-attention.")
    ] = 0.8
    self_replace_steps: Annotated[
        float, typer.Option(help="Share of the steps with the source's self-attention.")
    ] = 0.4
    null_text_steps: Annotated[
        float,
        typer.Option(
            help="Share of the steps guided away from null-text's fitted embedding, then from the "
            "empty prompt; try 0.5 where an edit looks exaggerated."
        ),
    ] = 1.0
    weight: Annotated[
        list[str] | None, typer.Option(help="`word=factor` on a target word; may repeat.")
    ] = None
    blend: Annotated[
        list[str] | None,
        typer.Option(help="A word whose region alone may change; `auto`: those that differ."),
    ] = None
    subtract: Annotated[
        list[str] | None, typer.Option(help="A word whose region is left out of --blend's.")
    ] = None

    mutual_from_step: Annotated[
        int | None,
        typer.Option(help="From this step on, see the source's picture itself (MasaCtrl); try 4."),
    ] = None

    def edits(self, targets: Sequence[str], mask: Any = None) -> list[Edit]:
        """An `Edit` for each target. mask: bool [H, W], or None."""
        from pivotal.editing.edit import Edit
        from pivotal.editing.masactrl import MutualSelfAttention

        step = self.mutual_from_step
        mutual = None if step is None else MutualSelfAttention(start_step=step)
        return [
            Edit(
                target=prompt_text(target, "--target"),
                kind=self.kind,  # type: ignore[arg-type]  # Edit names the accepted ones
                cross_replace_steps=self.cross_replace_steps,
                self_replace_steps=self.self_replace_steps,
                null_text_steps=self.null_text_steps,
                weights=numbers(self.weight, "weight"),
                blend="auto" if self.blend == ["auto"] else tuple(self.blend or ()),
                subtract=tuple(self.subtract or ()),
                mutual=mutual,
                mask=mask,
            )
            for target in targets
        ]


def read_mask(path: Path, fitted: Fitted) -> Any:
    """A picture as a mask of the fitted source's own size: bool [H, W], true where it is light.

    It has the source's size, or that of the fitted picture; the former is fitted as the source.
    """
    import torch

    from pivotal.images import fit, read_image

    picture = read_image(path)
    pixels = picture.pixels
    if picture.size != fitted.size:
        if picture.size != fitted.source_size:
            given, first, second = (
                f"{height}x{width}"
                for height, width in (picture.size, fitted.source_size, fitted.size)
            )
            raise ValueError(
                f"--mask {str(path)!r} is {given}; the source's {first} or the inversion's "
                f"{second} (height x width) is expected"
            )
        pixels = fit(picture, fitted.size, fitted.policy).pixels
    mask = torch.from_numpy(pixels.astype("int64").mean(axis=2) >= 128)
    if not bool(mask.any()):
        raise ValueError(f"--mask {str(path)!r} is dark all over, so nothing could change")
    return mask
