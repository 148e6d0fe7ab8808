"""`pivotal reconstruct`: an inversion sampled back, without an edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Force, GuidanceScale, ModelOptions, NoMetadata
from .outputs import check_outputs, chosen, staged
from .terminal import Terminal


def reconstruct(
    inversion: Annotated[Path, typer.Argument(help="A file that `pivotal invert` made.")],
    model: ModelOptions,
    terminal: Terminal,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Default: INVERSION-reconstruction.png."
        ),
    ] = None,
    guidance_scale: GuidanceScale = None,
    negative_prompt: Annotated[
        str | None,
        typer.Option(help="What guidance leads away from. Default: the inversion's own."),
    ] = None,
    no_metadata: NoMetadata = False,
    force: Force = False,
) -> None:
    """Sample an inversion back, and say what was lost and to what.

    Example: `pivotal reconstruct cat.safetensors --guidance-scale 1`
    """
    from rich.table import Table

    from pivotal.images import known_extension, save_image
    from pivotal.inversion_file import read_inversion
    from pivotal.records import decibels, embedded, reconstruction_record

    source = read_inversion(inversion)
    path = chosen(output, f"{inversion.stem}-reconstruction.png", force=force)
    known_extension(path)
    check_outputs([path], force=force)
    engine = model.load(source.model)
    with terminal.progress() as bar:
        found = engine.reconstruct(
            source,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            on_progress=bar,
        )
    record = reconstruction_record(source, found)
    with staged([path], terminal.interruption, force=force) as places:
        pixels = source.picture.unfit(found.picture)
        save_image(pixels, places[path], None if no_metadata else embedded(record))
    table = Table("method", "guidance", "VAE", "reconstruction", "mostly", "seconds")
    table.add_row(
        f"{source.method}, {source.num_inference_steps} steps",
        f"{found.guidance_scale:g}",
        decibels(found.vae_psnr),
        decibels(found.psnr),
        found.dominant_error,
        f"{record['seconds']['total']:.1f}",
    )
    terminal.show({**record, "outputs": {"picture": str(path)}}, table)
    terminal.saved([path])
