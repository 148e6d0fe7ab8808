"""What an edit keeps of its source: options that `edit`, `compare` and `explain` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .completion import complete_kinds
from .values import numbers, prompt_text

if TYPE_CHECKING:
    from pivotal.editing.edit import Edit


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
    blend_threshold: Annotated[
        float,
        typer.Option(
            help="A word's region, for --blend and `--mask word:`, is where it is looked at more "
            "than so much of the most, 0 to 1; higher is smaller."
        ),
    ] = 0.3
    blend_start: Annotated[
        float, typer.Option(help="Share of the steps before --blend begins.")
    ] = 0.2

    mutual_from_step: Annotated[
        int | None,
        typer.Option(help="From this step on, see the source's picture itself (MasaCtrl); try 4."),
    ] = None

    mask_with_blend: Annotated[
        str, typer.Option(help="Where both allow it, `and`, or either, `or`.")
    ] = "and"
    feather: Annotated[
        float, typer.Option(metavar="PIXELS", help="How wide the mask's or blend's edge fades.")
    ] = 0.0
    preserve: Annotated[
        str,
        typer.Option(
            help="What is put back outside mask and blend: the source's `latent`s; the picture's "
            "own `pixel`s, too; `none`, and decibels are measured there all the same."
        ),
    ] = "latent"

    def edits(self, targets: Sequence[str], where: Mapping[str, Any] | None = None) -> list[Edit]:
        """An `Edit` for each target. where: its mask, as `masks.mask_fields` gives it."""
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
                blend_threshold=self.blend_threshold,
                blend_start=self.blend_start,
                mutual=mutual,
                mask_with_blend=self.mask_with_blend,  # type: ignore[arg-type]
                feather=self.feather,
                preserve=self.preserve,  # type: ignore[arg-type]
                **(where or {}),
            )
            for target in targets
        ]
