"""The demo: a drawn scene and a photograph, inverted three ways, reconstructed and edited."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as ConsoleTable

from .editing.edit import Edit
from .engine import Engine
from .errors import OutputError
from .figures import Row, Table, contact_sheet
from .images import save_image
from .inversion_file import Inversion, write_inversion
from .progress import ProgressBar
from .results import Reconstruction
from .sheets import (
    decibels,
    edit_panels,
    edit_record,
    finite,
    inversion_panels,
    inversion_record,
    reconstruction_panel,
)

GUIDANCE = 7.5


@dataclass(frozen=True)
class Subject:
    """A picture of the demo: its file, what it shows, and what it should become."""

    label: str
    file: str
    prompt: str
    edit: Edit


def subjects() -> list[Subject]:
    """The bundled pictures, neither of which the model's training saw."""
    texts = json.loads((files("pivotal") / "bundled/pictures/pictures.json").read_text("utf-8"))
    return [
        Subject(text["label"], text["file"], text["prompt"], Edit(text["target"], **text["edit"]))
        for text in texts
    ]


def run_demo(folder: Path, steps: int, console: Console, *, quiet: bool = False) -> dict[str, Any]:
    """Run on the CPU with the bundled model; write pictures and a contact sheet to `folder`.

    Returns the figures. Raises OutputError if the folder can't be written.
    """
    start = time.perf_counter()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't make the folder {str(folder)!r}: {error.strerror}") from None
    engine = Engine.load("shapes")
    rows: list[Row] = []
    records: list[dict[str, Any]] = []
    for subject in subjects():
        row, record = _one(engine, subject, steps, folder, console, quiet)
        rows.append(row)
        records += record
    total = time.perf_counter() - start
    header = ("picture", "method", "VAE", "reconstruction", "mostly", "seconds", "UNet rows")
    lines = [
        (
            each["picture"],
            each["title"],
            decibels(each["vae_psnr"] or float("inf")),
            decibels(each["psnr"] or float("inf")),
            each["dominant_error"],
            f"{each['seconds']['invert'] + each['seconds']['reconstruct']:.1f}",
            str(each["unet_rows"]),
        )
        for each in records
    ]
    sheet = contact_sheet(
        rows,
        title="pivotal: inverted, reconstructed, edited",
        footer=f"bundled model “shapes” · {steps} steps · {engine.model.device} · {total:.0f} s",
        columns=6,
        table=Table(header, lines),
    )
    path = folder / "contact-sheet.png"
    save_image(sheet, path)
    if not quiet:
        table = ConsoleTable(*header)
        for line in lines:
            table.add_row(*line)
        console.print(table)
        console.print(f"{total:.0f} s in all; look at {path}", markup=False)
    return {"seconds": total, "runs": records, "outputs": {"sheet": str(path)}}


def _one(
    engine: Engine, subject: Subject, steps: int, folder: Path, console: Console, quiet: bool
) -> tuple[Row, list[dict[str, Any]]]:
    def prefixed(what: str) -> ProgressBar:
        return ProgressBar(console, quiet=quiet, prefix=f"{subject.label}, {what}: ")

    def invert(method: str) -> Inversion:
        picture = files("pivotal") / "bundled/pictures" / subject.file
        with as_file(picture) as path, prefixed(method) as bar:
            return engine.invert(
                path,
                subject.prompt,
                method=method,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                on_progress=bar,
            )

    def back(inversion: Inversion, guidance: float) -> Reconstruction:
        with prefixed(f"back at guidance {guidance:g}") as bar:
            return engine.reconstruct(inversion, guidance_scale=guidance, on_progress=bar)

    ddim, null_text = invert("ddim"), invert("null-text")
    plain, drifted, fitted = back(ddim, 1.0), back(ddim, GUIDANCE), back(null_text, GUIDANCE)
    with prefixed("editing") as bar:
        edited = engine.edit(null_text, subject.edit, on_progress=bar)
    name = Path(subject.file).stem
    picture = folder / f"{name}-edit.png"
    save_image(
        edited.pictures[0],
        picture,
        {"pivotal": json.dumps(edit_record(edited, 0, {"picture": str(picture)}))},
    )
    write_inversion(null_text, folder / f"{name}.safetensors")
    panels = inversion_panels(ddim, plain)
    panels += [reconstruction_panel(ddim, drifted), reconstruction_panel(null_text, fitted)]
    panels += edit_panels(edited)
    records = [
        {
            **inversion_record(inversion, found),
            "picture": subject.label,
            "title": f"{inversion.method}, in at 1, out at {found.guidance_scale:g}"
            if inversion.method == "ddim"
            else f"{inversion.method}, out at {found.guidance_scale:g}",
            "guidance_scale": found.guidance_scale,
            "edit_outside_mask_psnr": None
            if edited.outside_mask_psnr[0] is None
            else finite(edited.outside_mask_psnr[0]),
        }
        for inversion, found in ((ddim, plain), (ddim, drifted), (null_text, fitted))
    ]
    return Row(f"{subject.label}: “{subject.prompt}”", panels), records
