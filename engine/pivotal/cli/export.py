"""`pivotal export onnx | tensorrt`: a model's networks as files for other runtimes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import command
from .options import Force, ModelOptions
from .terminal import Terminal

if TYPE_CHECKING:
    from pivotal.model.load import Model
    from pivotal.runtime.exported.profile import ShapeProfile
    from pivotal.runtime.exported.record import ExportRecord

app = typer.Typer(
    help="A model's networks as files for other runtimes: ONNX Runtime, TensorRT.",
    epilog="Example: `pivotal export onnx --model shapes -o shapes-onnx`",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

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


@command(app, "onnx")
def onnx(
    output: Folder,
    model: ModelOptions,
    terminal: Terminal,
    rows: Rows = "1:18",
    height: Side = None,
    width: Side = None,
    force: Force = False,
) -> None:
    """Export to ONNX, compared with torch before it is kept: minutes for a full-size model.

    Example: `pivotal export onnx --model shapes -o shapes-onnx`
    """
    from pivotal.runtime.exported.onnx_export import export_onnx

    _check(output, force=force)
    loaded = _load(model)
    profile = _profile(loaded, rows, height, width)
    with _staged(output, terminal, force=force) as place, terminal.console.status("") as status:
        record = export_onnx(
            loaded,
            profile,
            place,
            told=lambda part, done, parts: status.update(f"{part} ({done + 1} of {parts})"),
        )
    _say(terminal, output, record)


@command(app, "tensorrt")
def tensorrt(
    output: Folder,
    model: ModelOptions,
    terminal: Terminal,
    sm: Annotated[
        list[str] | None,
        typer.Option(
            help="Compute capability, as `89` or `120`; may repeat. Default: this machine's GPU."
        ),
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="An ONNX export to build from, instead of a new one."),
    ] = None,
    flavour: Annotated[
        str, typer.Option(help="`tensorrt`, `tensorrt_rtx`, or `auto`: what is installed.")
    ] = "auto",
    bucket: Annotated[
        list[int] | None,
        typer.Option(
            help="A batch size, each an optimisation profile; may repeat. Default: 2, 4, 8, 18."
        ),
    ] = None,
    height: Side = None,
    width: Side = None,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit",
            help="Engines take the weights of an ONNX export in their folder `onnx`, also another "
            "model's; slower.",
        ),
    ] = False,
    strip_weights: Annotated[
        bool,
        typer.Option(
            "--strip-weights", help="Leave weights out; loading takes them from the ONNX export."
        ),
    ] = False,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Kernel timings to read and add to. Not for TensorRT-RTX, which has none.",
        ),
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(metavar="MB", help="Most scratch memory, in megabytes.")
    ] = None,
    force: Force = False,
) -> None:
    """Build TensorRT engines of the UNet. TensorRT-RTX needs no GPU to build for a named one.

    Example: `pivotal export tensorrt --model shapes --sm 89 -o shapes-engine`
    """
    from pivotal.runtime.exported.onnx_export import export_onnx
    from pivotal.runtime.exported.profile import Span
    from pivotal.runtime.exported.record import read_record
    from pivotal.runtime.exported.tensorrt_api import api_of
    from pivotal.runtime.exported.tensorrt_build import BuildOptions, build_engines

    options = BuildOptions(
        sm=tuple(sm or ()),
        buckets=tuple(bucket or BuildOptions().buckets),
        refit=refit,
        strip_weights=strip_weights,
        workspace=None if workspace is None else workspace * 10**6,
        timing_cache=timing_cache,
    )
    api = api_of(flavour)
    options.require(api)
    if onnx is not None and (height is not None or width is not None or strip_weights):
        raise ValueError(
            "--onnx has its own --height and --width, and can't go with --strip-weights, which "
            "keeps its ONNX export beside the engines; leave one out"
        )
    _check(output, force=force)
    loaded = _load(model)
    with _staged(output, terminal, force=force) as place, terminal.console.status("") as status:
        source = onnx
        if source is None:
            source = place / "onnx"
            source.mkdir()
            rows = str(Span(1, max(options.buckets)))
            export_onnx(
                loaded,
                _profile(loaded, rows, height, width),
                source,
                told=lambda part, done, parts: status.update(f"{part} to ONNX"),
            )
        read_record(source).require_model(loaded, source)
        interruption = terminal.interruption
        with interruption.held():  # an exception must not pass through the builder
            record = build_engines(
                loaded,
                source,
                place,
                api,
                options,
                told=status.update,
                stop=lambda: interruption.asked or interruption.ended is not None,
            )
        if onnx is None and not strip_weights:
            shutil.rmtree(source)
    _say(terminal, output, record)


def _load(options: ModelOptions) -> Model:
    from pivotal.model.load import load

    return load(
        options.model or "shapes",
        device=options.device,
        dtype=options.dtype,
        variant=options.variant,
        revision=options.revision,
        local_files_only=options.local_files_only,
        **options.parts(),
    )


def _profile(model: Model, rows: str, height: str | None, width: str | None) -> ShapeProfile:
    from pivotal.runtime.exported.profile import ShapeProfile, Span

    own_height, own_width = model.default_size
    return ShapeProfile(
        Span.parse(rows), Span.parse(height or str(own_height)), Span.parse(width or str(own_width))
    )


def _check(folder: Path, *, force: bool) -> None:
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
def _staged(folder: Path, terminal: Terminal, *, force: bool) -> Iterator[Path]:
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
                _check(folder, force=force)
                folder.rename(aside)
            place.rename(folder)
            shutil.rmtree(aside, ignore_errors=True)
    finally:
        with terminal.interruption.held():
            shutil.rmtree(place, ignore_errors=True)


def _say(terminal: Terminal, folder: Path, record: ExportRecord) -> None:
    from rich.table import Table

    table = Table("file", "size", "from torch")
    answer: dict[str, Any] = {**record.as_json(), "folder": str(folder), "bytes": {}}
    for name in record.files:
        size = answer["bytes"][name] = (folder / name).stat().st_size
        error = record.errors.get(Path(name).stem)
        shown = "" if error is None or Path(name).suffix == ".weights" else f"{error:.1e}"
        table.add_row(name, f"{size / 1e6:.1f} MB", shown)
    table.caption = f"{record.family}, {record.dtype}, {record.profile.record()}"
    terminal.show(answer, table)
    terminal.saved([folder])
