"""`pivotal edit`: an inversion and new prompts to new pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .editing import EditOptions
from .frames import Frames, animations
from .masks import mask_fields
from .options import (
    Animation,
    Force,
    GuidanceScale,
    Mask,
    ModelOptions,
    NoMetadata,
)
from .outputs import check_outputs, chosen, free, numbered, staged
from .terminal import Terminal

if TYPE_CHECKING:
    from pivotal.engine import Engine
    from pivotal.inversion_file import Inversion
    from pivotal.results import Edited


@dataclass(frozen=True)
class _Places:
    """Every file that the command writes."""

    pictures: list[Path]
    sheet: Path
    animations: list[Path]
    report: Path | None

    def all(self) -> list[Path]:
        report = [] if self.report is None else [self.report]
        return [*self.pictures, self.sheet, *self.animations, *report]

    def of(self, index: int) -> dict[str, str]:
        """The files of one target, as the record names them."""
        found = {"picture": self.pictures[index], "sheet": self.sheet}
        if self.animations:
            found["animation"] = self.animations[index]
        if self.report is not None:
            found["report"] = self.report
        return {name: str(path) for name, path in found.items()}


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
    mask: Mask = None,
    guidance_scale: GuidanceScale = None,
    negative_prompt: Annotated[
        str | None,
        typer.Option(help="What guidance leads away from. Default: the inversion's own."),
    ] = None,
    animation: Animation = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also a page with a before/after slider, `.html`."),
    ] = None,
    no_metadata: NoMetadata = False,
    force: Force = False,
) -> None:
    """Edit an inverted image by changing its prompt. Writes pictures and a contact sheet.

    Example: `pivotal edit cat.safetensors --target "a dog on a sofa"`

    Example: `pivotal edit cat.safetensors --target "a big cat on a sofa" --weight big=2
    --blend cat --report big.html --animation big.gif -o big.png`

    Example: `pivotal edit cat.safetensors --target "a dog on a sofa" --mask word:cat
    --feather 12 --preserve pixel`
    """
    from pivotal.inversion_file import read_inversion
    from pivotal.records import edit_record

    source = read_inversion(inversion)
    edits = options.edits(target, mask_fields(mask, source.picture))
    places = _places(inversion, output, len(edits), animation, report, force=force)
    check_outputs(places.all(), force=force)
    engine = model.load(source.model)
    frames = Frames(edits=True) if animation else None
    with terminal.progress() as bar:
        edited = engine.edit_many(
            source,
            edits,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            callback_on_step_end=frames,
            on_progress=bar,
        )
    records = [edit_record(source, edited, index, places.of(index)) for index in range(len(edits))]
    _write(
        places,
        engine,
        source,
        edited,
        records,
        frames,
        terminal,
        metadata=not no_metadata,
        force=force,
    )
    terminal.show(records[0] if len(records) == 1 else {"edits": records}, _table(edited, records))
    terminal.saved(places.all())


def _places(
    inversion: Path,
    output: Path | None,
    count: int,
    animation: Path | None,
    report: Path | None,
    *,
    force: bool,
) -> _Places:
    from pivotal.figures import animation_extension
    from pivotal.images import known_extension

    path = chosen(output, f"{inversion.stem}-edit.png", force=force)
    known_extension(path)
    if animation is not None:
        animation_extension(animation)
    if report is not None and report.suffix.lower() != ".html":
        raise ValueError(f"--report {str(report)!r}: a report is an .html file")
    pictures = numbered(path, count)
    sheet = path.with_name(f"{path.stem}-sheet.png")
    if output is None and not force:
        pictures, sheet = [free(each) for each in pictures], free(sheet)
    animations = [] if animation is None else numbered(animation, count)
    return _Places(pictures, sheet, animations, report)


def _write(
    places: _Places,
    engine: Engine,
    source: Inversion,
    edited: Edited,
    records: Sequence[dict[str, Any]],
    frames: Frames | None,
    terminal: Terminal,
    *,
    metadata: bool,
    force: bool,
) -> None:
    from pivotal.figures import contact_sheet, save_animation
    from pivotal.images import save_image
    from pivotal.records import embedded
    from pivotal.sheets import edit_row, footer, write_edit_report

    carried = [embedded(record) if metadata else None for record in records]
    label = places.pictures[0].stem
    row = edit_row(source, edited, label)
    lines = math.ceil(len(row.panels) / 7)
    columns = math.ceil(len(row.panels) / lines)  # no line of a single panel
    sheet = contact_sheet([row], title="pivotal edit", footer=footer(source), columns=columns)
    moving = animations(engine, frames, edited.pictures, terminal)
    with staged(places.all(), terminal.interruption, force=force) as at:
        for index, path in enumerate(places.pictures):
            pixels = source.picture.unfit(edited.pictures[index])
            save_image(pixels, at[path], carried[index])
        save_image(sheet, at[places.sheet])
        if places.report is not None:
            write_edit_report(at[places.report], source, edited, records)
        for index, path in enumerate(places.animations):
            shown = moving[index]
            save_animation(shown.frames, at[path], labels=shown.labels, metadata=carried[index])


def _table(edited: Edited, records: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table

    from pivotal.records import decibels

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
