"""`pivotal invert`: images to inversion files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    CacheOptions,
    Force,
    GuidanceScale,
    Method,
    ModelOptions,
    Option,
    PictureSize,
    Policy,
    Steps,
)
from .outputs import check_apart, check_folder, check_outputs, free, made, staged
from .terminal import Terminal
from .values import named, picture_size, prompt_text

if TYPE_CHECKING:
    from pivotal.inversion_file import Inversion


def invert(
    image: Annotated[
        list[Path], typer.Argument(metavar="IMAGE", help="PNG, JPEG, WebP, GIF, BMP or TIFF.")
    ],
    prompt: Annotated[
        list[str],
        typer.Option(help="What the image shows; for several images, one for all or one each."),
    ],
    model: ModelOptions,
    cache: CacheOptions,
    terminal: Terminal,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE|FOLDER",
            help="For several images a folder. Default: IMAGE's name, .safetensors, here.",
        ),
    ] = None,
    method: Method = "null-text",
    steps: Steps = 50,
    guidance_scale: GuidanceScale = None,
    negative_prompt: Annotated[
        str, typer.Option(help="What guidance leads away from; kept for edits.")
    ] = "",
    option: Option = None,
    seed: Annotated[
        int | None, typer.Option(help="For methods that draw noise (`pivotal methods`).")
    ] = None,
    size: PictureSize = None,
    policy: Policy = "fit",
    force: Force = False,
) -> None:
    """Find the noise that an image comes from, and save it for edits.

    Example: `pivotal invert photo.jpg --prompt "a cat on a sofa" -o cat.safetensors`

    Example: `pivotal invert a.jpg b.jpg --prompt "a red circle" --method ddim -o inversions`
    """
    from pivotal.errors import BatchError
    from pivotal.images import read_image
    from pivotal.records import inversion_record

    prompts = [prompt_text(each, "--prompt") for each in prompt]
    if len(prompts) not in (1, len(image)):
        raise ValueError(
            f"{len(prompts)} prompts for {len(image)} images; give --prompt once for all, or once "
            "for each"
        )
    prompts = prompts * len(image) if len(prompts) == 1 else prompts
    fitted = picture_size(size)
    options: dict[str, Any] = dict(named(option, "option"))
    if seed is not None:
        options = _seeded(method, seed, options)
    paths = _paths(image, output, force=force)
    check_apart(paths)
    if len(image) == 1 or paths[0].parent.is_dir():
        check_outputs(paths, force=force)
    for each in image:
        read_image(each)
    engine = model.load(cache=cache.open())
    with terminal.progress() as bar:
        failed: BatchError | None = None
        inversions: Sequence[Inversion | None]
        try:
            inversions = engine.invert_many(
                image,
                prompts,
                method=method,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                negative_prompt=negative_prompt,
                options=options,
                size=fitted,
                policy=policy,  # type: ignore[arg-type]  # the engine names the accepted ones
                on_progress=bar,
            )
        except BatchError as error:
            if not any(error.results):
                raise next(iter(error.errors.values())) from None
            failed, inversions = error, error.results
        done = [(path, each) for path, each in zip(paths, inversions, strict=True) if each]
        records = []
        for _, inversion in done:
            found = engine.reconstruct(inversion, on_progress=bar)
            records.append(inversion_record(inversion, found))
    _write(done, records, terminal, force=force)
    full = [
        {**record, "outputs": {"inversion": str(path)}}
        for (path, _), record in zip(done, records, strict=True)
    ]
    terminal.show(full[0] if len(image) == 1 else {"inversions": full}, _table(done, records))
    written = [path for path, _ in done]
    terminal.saved(written, f'next: pivotal edit {written[0]} --target "..."')
    if failed is not None:
        raise failed


def _paths(images: Sequence[Path], output: Path | None, *, force: bool) -> list[Path]:
    """Where each image's inversion goes."""
    if output is None or output.is_dir() or len(images) > 1:
        folder = output or Path()
        if output is not None and len(images) > 1 and output.suffix == ".safetensors":
            raise ValueError(
                f"--output {str(output)!r} is one file for {len(images)} images; name a folder"
            )
        check_folder(folder)
        paths = [folder / f"{image.stem}.safetensors" for image in images]
        return paths if force or output is not None else [free(path) for path in paths]
    if output.suffix != ".safetensors":
        raise ValueError(f"--output {str(output)!r}: an inversion is a .safetensors file")
    return [output]


def _seeded(method: str, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import fields

    from pivotal.inversion.registry import method_named

    if "seed" not in {each.name for each in fields(method_named(method).options)}:
        raise ValueError(f"--seed {seed}: {method} draws no random numbers; leave it out")
    if "seed" in options:
        raise ValueError(f"--seed {seed} and --option seed={options['seed']}; give one of them")
    return {**options, "seed": seed}


def _write(
    done: Sequence[tuple[Path, Inversion]],
    records: Sequence[dict[str, Any]],
    terminal: Terminal,
    *,
    force: bool,
) -> None:
    from pivotal.inversion_file import write_inversion

    paths = [path for path, _ in done]
    with made(paths[0].parent), staged(paths, terminal.interruption, force=force) as places:
        for (path, inversion), record in zip(done, records, strict=True):
            write_inversion(inversion.with_report(record), places[path])


def _table(done: Sequence[tuple[Path, Inversion]], records: Sequence[dict[str, Any]]) -> Any:
    """One inversion upright, several side by side."""
    from rich.table import Table

    from pivotal.records import decibels

    header = ("inversion", "method", "VAE round trip", "reconstruction", "mostly", "seconds")
    lines = []
    for (path, inversion), record in zip(done, records, strict=True):
        told = record["seconds"]
        seconds = f"{told['invert']:.1f}, with all else {told['total']:.1f}"
        lines.append(
            (
                path.name,
                f"{record['method']}, {record['steps']} steps at {record['guidance_scale']:g}",
                decibels(record["vae_psnr"]),
                decibels(record["psnr"]),
                record["dominant_error"],
                f"{seconds}, cached" if inversion.report.get("cached") else seconds,
            )
        )
    if len(lines) > 1:
        table = Table(*header)
        for line in lines:
            table.add_row(*line)
        return table
    table = Table("", "", show_header=False)
    for name, value in zip(header, lines[0], strict=True):
        table.add_row(name, value)
    return table
