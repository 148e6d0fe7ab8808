"""`pivotal export onnx | tensorrt`: a model's networks as files for other runtimes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from .command import command
from .exporting import ExportedModel, Folder, Rows, Side, check, gpu_of, profile_of, say, staged
from .options import Force
from .terminal import Terminal

app = typer.Typer(
    help="A model's networks as files for other runtimes: ONNX Runtime, TensorRT.",
    epilog="Example: `pivotal export onnx --model shapes -o shapes-onnx`",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@command(app, "onnx")
def onnx(
    output: Folder,
    model: ExportedModel,
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

    check(output, force=force)
    loaded = model.load()
    profile = profile_of(loaded, rows, height, width)
    with staged(output, terminal, force=force) as place, terminal.console.status("") as status:
        record = export_onnx(
            loaded,
            profile,
            place,
            told=lambda part, done, parts: status.update(f"{part} ({done + 1} of {parts})"),
        )
    say(terminal, output, record)


@command(app, "tensorrt")
def tensorrt(
    output: Folder,
    model: ExportedModel,
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
            help="A batch size, each an optimisation profile; may repeat. Default: 1, 2, 4, 8, 18."
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="`cuda`, `cuda:1`: where kernels are timed, and its engines compared with "
            "torch; without one they are when they are loaded."
        ),
    ] = "cuda",
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

    An engine is code. Yours are sealed with a key, made at the first build in the file that
    PIVOTAL_ENGINE_KEY names, or in ~/.local/share/pivotal/engine-key; another machine loads them
    with the same key, or with `--allow-foreign-engine`.

    Example: `pivotal export tensorrt --model shapes --sm 89 -o shapes-engine`
    """
    from pivotal.runtime.exported.onnx_export import export_onnx
    from pivotal.runtime.exported.profile import Span
    from pivotal.runtime.exported.record import read_record
    from pivotal.runtime.exported.tensorrt_api import api_of, current_sm
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
    gpu = gpu_of(device)
    options.require(api, gpu)
    if onnx is not None and (height is not None or width is not None or strip_weights):
        raise ValueError(
            "--onnx has its own --height and --width, and can't go with --strip-weights, which "
            "keeps its ONNX export beside the engines; leave one out"
        )
    check(output, force=force)
    loaded = model.load()
    with staged(output, terminal, force=force) as place, terminal.console.status("") as status:
        source = onnx
        if source is None:
            source = place / "onnx"
            source.mkdir()
            rows = str(Span(1, max(options.buckets)))
            export_onnx(
                loaded,
                profile_of(loaded, rows, height, width),
                source,
                told=lambda part, done, parts: status.update(f"{part} to ONNX"),
            )
        read_record(source).require_model(loaded, source)
        if gpu is not None and (not options.sm or current_sm(gpu) in options.sm):
            loaded = model.load(str(gpu))  # to compare the engines with
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
    say(terminal, output, record)
