"""`pivotal demo`: the whole of it, on two bundled pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Force, Steps
from .outputs import check_folder, check_outputs, made, staged
from .terminal import Terminal

if TYPE_CHECKING:
    from pivotal.demo import Outcome
    from pivotal.figures import Table


def demo(
    terminal: Terminal,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Made if need be.")
    ] = Path("demo"),
    steps: Steps = 50,
    force: Force = False,
) -> None:
    """Invert, reconstruct and edit a drawn scene and a photograph with the bundled model.

    Example: `pivotal demo --steps 10 -o demo`
    """
    from pivotal.demo import SHEET, run_demo, subjects

    ends = ("-edit.png", ".safetensors")
    names = [SHEET, *(f"{each.stem}{end}" for each in subjects() for end in ends)]
    check_folder(output)
    if output.is_dir():
        check_outputs([output / name for name in names], force=force)
    outcome = run_demo(steps, terminal.progress)
    _write(outcome, output, [output / name for name in names], terminal, force=force)
    record = {**outcome.record(), "outputs": {"sheet": str(output / SHEET)}}
    terminal.show(
        record,
        shown_table(outcome.table),
        f"{outcome.seconds:.0f} s in all; look at {output / SHEET}",
    )


def shown_table(table: Table) -> Any:
    """The demo's figures for a terminal."""
    from rich.table import Table as Shown

    shown = Shown(*table.header)
    for line in table.rows:
        shown.add_row(*line)
    return shown


def _write(
    outcome: Outcome, folder: Path, paths: list[Path], terminal: Terminal, *, force: bool
) -> None:
    from pivotal.demo import SHEET
    from pivotal.images import save_image
    from pivotal.inversion_file import write_inversion
    from pivotal.records import embedded

    with made(folder), staged(paths, terminal.interruption, force=force) as places:
        for each in outcome.shown:
            stem = each.subject.stem
            picture = places[folder / f"{stem}-edit.png"]
            save_image(each.picture, picture, embedded(each.record))
            write_inversion(each.inversion, places[folder / f"{stem}.safetensors"])
        save_image(outcome.sheet, places[folder / SHEET])
