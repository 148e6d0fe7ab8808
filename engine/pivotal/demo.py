"""The demo: a drawn scene and a photograph, inverted three ways, reconstructed and edited."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from .driver import Listener
from .editing.edit import Edit
from .engine import Engine
from .figures import Row, Table, contact_sheet
from .images import Pixels
from .inversion_file import Inversion
from .records import decibels, edit_record, finite, inversion_record
from .results import Edited, Reconstruction
from .sheets import edit_panels, inversion_panels, reconstruction_panel

GUIDANCE = 7.5
SHEET = "contact-sheet.png"

Show = Callable[[str], AbstractContextManager[Listener]]
"""A progress bar whose lines begin with these words."""


@dataclass(frozen=True)
class Subject:
    """A picture of the demo: its file, what it shows, and what it should become."""

    label: str
    file: str
    prompt: str
    edit: Edit

    @property
    def stem(self) -> str:
        return Path(self.file).stem


@dataclass(frozen=True)
class Shown:
    """What became of one subject. picture: the edit, uint8 [H, W, 3]."""

    subject: Subject
    picture: Pixels
    record: dict[str, Any]
    inversion: Inversion
    row: Row
    runs: list[dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What the demo found: a contact sheet, each subject's files, and the figures as a table.

    In the table "DDIM 1 → 7.5" is inverted at guidance 1 and sampled back at 7.5; "back" is how
    close that comes to the source; rows are the UNet's for the inversion.
    """

    sheet: Pixels
    shown: list[Shown]
    table: Table
    seconds: float

    def record(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "runs": [run for each in self.shown for run in each.runs],
        }


def subjects() -> list[Subject]:
    """The bundled pictures, neither of which the model's training saw."""
    texts = json.loads((files("pivotal") / "bundled/pictures/pictures.json").read_text("utf-8"))
    return [
        Subject(text["label"], text["file"], text["prompt"], Edit(text["target"], **text["edit"]))
        for text in texts
    ]


def run_demo(steps: int, show: Show) -> Outcome:
    """Run with the bundled model on the CPU. Writes nothing."""
    start = time.perf_counter()
    engine = Engine.load("shapes")
    shown = [_one(engine, subject, steps, show) for subject in subjects()]
    total = time.perf_counter() - start
    table = figures_of([run for each in shown for run in each.runs])
    sheet = contact_sheet(
        [each.row for each in shown],
        title="pivotal: inverted, reconstructed, edited",
        footer=f"bundled model “shapes” · {steps} steps · {engine.model.device} · {total:.0f} s",
        columns=6,
        table=table,
    )
    return Outcome(sheet, shown, table, total)


def figures_of(runs: Sequence[Mapping[str, Any]]) -> Table:
    """The runs in figures, in lines that fit 80 columns."""
    header = ("picture", "method", "VAE dB", "back dB", "loses most", "s", "rows")
    lines = [
        (
            run["picture"],
            run["title"],
            decibels(run["vae_psnr"]).removesuffix(" dB"),
            decibels(run["psnr"]).removesuffix(" dB"),
            run["dominant_error"],
            f"{run['seconds']['invert'] + run['seconds']['reconstruct']:.1f}",
            str(run["unet_rows"]),
        )
        for run in runs
    ]
    return Table(header, lines)


def title_of(method: str, guidance: float) -> str:
    """A run in a word: how it went in, and the guidance it came back at."""
    return f"{'DDIM 1 →' if method == 'ddim' else method} {guidance:g}"


def _one(engine: Engine, subject: Subject, steps: int, show: Show) -> Shown:
    def invert(method: str) -> Inversion:
        picture = files("pivotal") / "bundled/pictures" / subject.file
        with as_file(picture) as path, show(f"{subject.label}, {method}: ") as bar:
            return engine.invert(
                path,
                subject.prompt,
                method=method,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                on_progress=bar,
            )

    def back(inversion: Inversion, guidance: float) -> Reconstruction:
        with show(f"{subject.label}, back at guidance {guidance:g}: ") as bar:
            return engine.reconstruct(inversion, guidance_scale=guidance, on_progress=bar)

    ddim, null_text = invert("ddim"), invert("null-text")
    plain, drifted, fitted = back(ddim, 1.0), back(ddim, GUIDANCE), back(null_text, GUIDANCE)
    with show(f"{subject.label}, editing: ") as bar:
        edited = engine.edit(null_text, subject.edit, on_progress=bar)
    panels = inversion_panels(ddim, plain)
    panels += [reconstruction_panel(ddim, drifted), reconstruction_panel(null_text, fitted)]
    panels += edit_panels(edited)
    ran = ((ddim, plain), (ddim, drifted), (null_text, fitted))
    return Shown(
        subject=subject,
        picture=null_text.picture.unfit(edited.pictures[0]),
        record=edit_record(null_text, edited, 0, {}),
        inversion=null_text,
        row=Row(f"{subject.label}: “{subject.prompt}”", panels),
        runs=[_run(subject, inversion, found, edited) for inversion, found in ran],
    )


def _run(
    subject: Subject, inversion: Inversion, found: Reconstruction, edited: Edited
) -> dict[str, Any]:
    """One inversion sampled back, in figures."""
    outside = edited.outside_mask_psnr[0]
    return {
        **inversion_record(inversion, found),
        "picture": subject.label,
        "title": title_of(inversion.method, found.guidance_scale),
        "guidance_scale": found.guidance_scale,
        "edit_outside_mask_psnr": None if outside is None else finite(outside),
    }
