"""`pivotal edit`: an inversion and new prompts to new pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .completion import complete_kinds
from .options import (
    Force,
    GuidanceScale,
    ModelOptions,
    NoMetadata,
    numbers,
    prompt_text,
)
from .outputs import check_outputs, chosen, free, numbered, staged
from .terminal import Terminal

if TYPE_CHECKING:
    from pivotal.editing.edit import Edit
    from pivotal.inversion_file import Inversion
    from pivotal.results import Edited


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

    def edits(self, targets: Sequence[str], mask: Any = None) -> list[Edit]:
        """An `Edit` for each target. mask: bool [H, W], or None."""
        from pivotal.editing.edit import Edit

        return [
            Edit(
                target=prompt_text(target, "--target"),
                kind=self.kind,  # type: ignore[arg-type]  # Edit names the accepted ones
                cross_replace_steps=self.cross_replace_steps,
                self_replace_steps=self.self_replace_steps,
                weights=numbers(self.weight, "weight"),
                blend="auto" if self.blend == ["auto"] else tuple(self.blend or ()),
                subtract=tuple(self.subtract or ()),
                mask=mask,
            )
            for target in targets
        ]


@dataclass(frozen=True)
class _Places:
    """Every file that the command writes."""

    pictures: list[Path]
    sheet: Path

    def all(self) -> list[Path]:
        return [*self.pictures, self.sheet]

    def of(self, index: int) -> dict[str, str]:
        """The files of one target, as the record names them."""
        return {"picture": str(self.pictures[index]), "sheet": str(self.sheet)}


def edit(
    inversion: Annotated[Path, typer.Argument(help="A file that `pivotal invert` made.")],
    target: Annotated[list[str], typer.Option(help="The prompt to edit to; may repeat.")],
    options: EditOptions,
    model: ModelOptions,
    terminal: Terminal,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Default: INVERSION-edit.png."),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A picture; only where it is white may change happen."),
    ] = None,
    guidance_scale: GuidanceScale = None,
    no_metadata: NoMetadata = False,
    force: Force = False,
) -> None:
    """Edit an inverted image by changing its prompt. Writes pictures and a contact sheet.

    Example: `pivotal edit cat.safetensors --target "a dog on a sofa"`

    Example: `pivotal edit cat.safetensors --target "a big cat on a sofa" --weight big=2
    --blend cat -o big.png`
    """
    from pivotal.inversion_file import read_inversion
    from pivotal.sheets import edit_record

    source = read_inversion(inversion)
    edits = options.edits(target, None if mask is None else _mask(mask, source))
    places = _places(inversion, output, len(edits), force=force)
    check_outputs(places.all(), force=force)
    engine = model.load(source.model)
    with terminal.progress() as bar:
        edited = engine.edit_many(
            source,
            edits,
            guidance_scale=guidance_scale,
            on_progress=bar,
        )
    records = [edit_record(source, edited, index, places.of(index)) for index in range(len(edits))]
    _write(places, source, edited, records, terminal, metadata=not no_metadata)
    terminal.show(records[0] if len(records) == 1 else {"edits": records}, _table(edited, records))
    terminal.saved(places.all())


def _places(inversion: Path, output: Path | None, count: int, *, force: bool) -> _Places:
    from pivotal.images import known_extension

    path = chosen(output, f"{inversion.stem}-edit.png", force=force)
    known_extension(path)
    pictures = numbered(path, count)
    sheet = path.with_name(f"{path.stem}-sheet.png")
    if output is None and not force:
        pictures, sheet = [free(each) for each in pictures], free(sheet)
    return _Places(pictures, sheet)


def _mask(path: Path, source: Inversion) -> Any:
    """A picture as a mask of the inversion's own size: bool [H, W], true where it is light.

    It has the source's size, or that of the inverted picture; the former is fitted as the source.
    """
    import torch

    from pivotal.images import fit, read_image

    picture, fitted = read_image(path), source.picture
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


def _write(
    places: _Places,
    source: Inversion,
    edited: Edited,
    records: Sequence[dict[str, Any]],
    terminal: Terminal,
    *,
    metadata: bool,
) -> None:
    from pivotal.figures import contact_sheet
    from pivotal.images import save_image
    from pivotal.sheets import edit_row, embedded, footer

    label = places.pictures[0].stem
    row = edit_row(source, edited, label)
    sheet = contact_sheet([row], title="pivotal edit", footer=footer(source), columns=6)
    with staged(places.all(), terminal.interruption) as at:
        for index, path in enumerate(places.pictures):
            pixels = source.picture.unfit(edited.pictures[index])
            save_image(pixels, at[path], embedded(records[index]) if metadata else None)
        save_image(sheet, at[places.sheet])


def _table(edited: Edited, records: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table

    from pivotal.sheets import decibels

    table = Table("target", "edit", "layers", "steps", "outside the mask", "seconds")
    for record, outside in zip(records, edited.outside_mask_psnr, strict=True):
        table.add_row(
            record["edit"]["target"],
            record["edit"]["kind"],
            str(record["touched"]["layers"]),
            str(record["touched"]["steps"]),
            "no mask" if outside is None else decibels(outside),
            f"{record['seconds']['total']:.1f}",
        )
    found = edited.source
    table.caption = f"reconstruction {decibels(found.psnr)}, VAE {decibels(found.vae_psnr)}"
    return table
