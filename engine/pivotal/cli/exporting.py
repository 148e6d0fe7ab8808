"""What both kinds of `pivotal export` share: the model, the shapes, the folder that is filled."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .checkpoint import MODEL, CheckpointOptions
from .terminal import Terminal

if TYPE_CHECKING:
    import torch

    from pivotal.model.load import Model
    from pivotal.runtime.exported.profile import ShapeProfile
    from pivotal.runtime.exported.record import ExportRecord

Folder = Annotated[
    Path, typer.Option("-o", "--output", metavar="DIR", help="A folder to make and fill.")
]
Rows = Annotated[
    str, typer.Option(metavar="N|LOW:HIGH", help="Rows of a UNet batch; an edit takes 4 and up.")
]
Side = Annotated[
    str | None,
    typer.Option(metavar="N|LOW:HIGH", help="Pixels. Default: the model's own size alone."),
]


@dataclass(frozen=True)
class ExportedModel(CheckpointOptions):
    """Which model, and in which format."""

    dtype: Annotated[
        str,
        typer.Option(
            help="The networks': `float32`, `float16`, `bfloat16`.", rich_help_panel=MODEL
        ),
    ] = "float32"

    def load(self, device: str = "cpu") -> Model:
        """On a CPU attention is torch's own, which ONNX can say."""
        from pivotal.model.load import load

        return load(
            self.model or "shapes",
            device=device,
            dtype=self.dtype,
            variant=self.variant,
            revision=self.revision,
            local_files_only=self.local_files_only,
            **self.parts(),
        )


def gpu_of(device: str) -> torch.device | None:
    """The GPU that was named; None for a CPU, or where there is no GPU. Raises ValueError for a
    device that is unknown or not here.
    """
    import torch

    from pivotal.model.load import device_of

    if device == "cuda" and not torch.cuda.is_available():
        return None
    found = device_of(device)
    return found if found.type == "cuda" else None


def profile_of(model: Model, rows: str, height: str | None, width: str | None) -> ShapeProfile:
    from pivotal.runtime.exported.profile import ShapeProfile, Span

    own_height, own_width = model.default_size
    return ShapeProfile(
        Span.parse(rows), Span.parse(height or str(own_height)), Span.parse(width or str(own_width))
    )


def check(folder: Path, *, force: bool) -> None:
    from pivotal.errors import OutputError

    from .outputs import check_folder

    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(f"{str(folder)!r} is no folder; name one to make")
    if folder.exists() and any(folder.iterdir()):
        if not force:
            raise OutputError(f"{str(folder)!r} is not empty; name another, or give --force")
        if not (folder / "export.json").is_file():
            raise OutputError(f"{str(folder)!r} holds no export, so --force won't replace it")
    check_folder(folder)


@contextmanager
def staged(folder: Path, terminal: Terminal, *, force: bool) -> Iterator[Path]:
    """A folder to fill beside the wanted one, moved into its place at the end, or removed."""
    import secrets

    folder.parent.mkdir(parents=True, exist_ok=True)
    place = folder.parent / f".pivotal-{secrets.token_hex(8)}.part"
    place.mkdir()
    try:
        yield place
        terminal.interruption.check()
        with terminal.interruption.held():
            aside = place.with_suffix(".old")
            if folder.exists():
                check(folder, force=force)
                folder.rename(aside)
            place.rename(folder)
            shutil.rmtree(aside, ignore_errors=True)
    finally:
        with terminal.interruption.held():
            shutil.rmtree(place, ignore_errors=True)


def say(terminal: Terminal, folder: Path, record: ExportRecord) -> None:
    from rich.table import Table

    table = Table("file", "size", "from torch")
    answer: dict[str, Any] = {**record.as_json(), "folder": str(folder), "bytes": {}}
    for name in record.files:
        size = answer["bytes"][name] = (folder / name).stat().st_size
        error = record.errors.get(Path(name).stem)
        shown = "" if error is None or Path(name).suffix == ".weights" else f"{error:.1e}"
        table.add_row(name, f"{size / 1e6:.2f} MB", shown)
    profile, engine = record.profile, record.engine
    rows = profile.rows if engine is None else ", ".join(map(str, engine.buckets))
    table.caption = (
        f"{record.family}, {record.dtype}, {rows} rows of {profile.width} x {profile.height} pixels"
    )
    if engine is not None:
        table.caption += f", for sm {', '.join(engine.sm)}" + ", not yet compared with torch" * (
            not engine.checked
        )
    terminal.show(answer, table)
    terminal.saved([folder])
