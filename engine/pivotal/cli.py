"""The command line: `pivotal invert`, `pivotal edit`, `pivotal demo`.

Results go to stdout, all else to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .errors import PivotalError

if TYPE_CHECKING:
    from .engine import Engine
    from .inversion_file import Inversion
    from .results import Edited

app = typer.Typer(
    name="pivotal",
    help="Invert real images into Stable Diffusion's noise space; edit them with Prompt-to-Prompt.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Model = Annotated[str, typer.Option(help="`shapes`, a diffusers folder, a hub id, `random:sd1`.")]
Device = Annotated[str, typer.Option(help="`cpu`, `cuda`, `cuda:1`.")]
Dtype = Annotated[str, typer.Option(help="The UNet's: `float32`, `float16`, `bfloat16`.")]
Variant = Annotated[str | None, typer.Option(help="The weights' variant, such as `fp16`.")]
Revision = Annotated[str | None, typer.Option(help="A hub model's branch, tag or commit.")]
Local = Annotated[bool, typer.Option("--local-files-only", help="Never ask the hub.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar, no tables.")]


@app.command()
def invert(
    image: Annotated[Path, typer.Argument(help="PNG, JPEG, WebP, GIF, BMP or TIFF.")],
    prompt: Annotated[str, typer.Option(help="What the image shows.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: IMAGE's name, .safetensors.")
    ] = None,
    method: Annotated[str, typer.Option(help="`null-text` or `ddim`.")] = "null-text",
    steps: Annotated[int, typer.Option(help="Steps of the schedule.")] = 50,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Of the edits to come. Default: the model's, 7.5.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="The method's own, `name=value`; may repeat.")
    ] = None,
    policy: Annotated[
        str, typer.Option(help="Fit to the model: `crop`, `pad`, `stretch`.")
    ] = "crop",
    model: Model = "shapes",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    variant: Variant = None,
    revision: Revision = None,
    local_files_only: Local = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the noise an image comes from, and save it for edits.

    Example: `pivotal invert photo.jpg --prompt "a cat on a sofa" -o cat.safetensors`
    """
    from .images import require_writable
    from .inversion_file import write_inversion
    from .progress import ProgressBar
    from .sheets import inversion_record

    path = output or Path(image.stem + ".safetensors")
    if path.suffix != ".safetensors":
        raise ValueError(f"--output {str(path)!r}: an inversion is a .safetensors file")
    require_writable(path)
    console = Console(stderr=True)
    engine = _load(
        model,
        device=device,
        dtype=dtype,
        variant=variant,
        revision=revision,
        local_files_only=local_files_only,
    )
    with ProgressBar(console, quiet=quiet) as bar:
        inversion = engine.invert(
            image,
            prompt,
            method=method,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            options=_named(option, "option"),
            policy=policy,  # type: ignore[arg-type]
            on_progress=bar,
        )
        found = engine.reconstruct(inversion, on_progress=bar)
    record = inversion_record(inversion, found)
    write_inversion(inversion.with_report(record), path)
    if as_json:
        _print_json({**record, "outputs": {"inversion": str(path)}})
    elif not quiet:
        console.print(_inversion_table(record))
        console.print(f'saved {path}; next: pivotal edit {path} --target "..."', markup=False)


@app.command()
def edit(
    inversion: Annotated[Path, typer.Argument(help="A file that `pivotal invert` made.")],
    target: Annotated[list[str], typer.Option(help="The prompt to edit to; may repeat.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: INVERSION's name, -edit.png.")
    ] = None,
    kind: Annotated[str, typer.Option(help="`auto`, `swap`, `refine`, `reweight`.")] = "auto",
    cross_replace_steps: Annotated[
        float, typer.Option(help="Share of the steps with the source's cross-attention.")
    ] = 0.8,
    self_replace_steps: Annotated[
        float, typer.Option(help="Share of the steps with the source's self-attention.")
    ] = 0.4,
    weight: Annotated[
        list[str] | None, typer.Option(help="`word=factor` on a target word; may repeat.")
    ] = None,
    blend: Annotated[
        list[str] | None,
        typer.Option(help="A word whose region alone may change; `auto`: those that differ."),
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Default: the inversion's.")] = None,
    model: Annotated[str | None, typer.Option(help="Default: the inversion's.")] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    variant: Variant = None,
    revision: Revision = None,
    local_files_only: Local = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Edit an inverted image by changing its prompt. Writes the picture and a contact sheet.

    Example: `pivotal edit cat.safetensors --target "a dog on a sofa"`
    """
    from .editing.edit import Edit
    from .figures import contact_sheet
    from .images import known_extension, require_writable, save_image
    from .inversion_file import read_inversion
    from .progress import ProgressBar
    from .sheets import edit_record, edit_row

    source = read_inversion(inversion)
    edits = [
        Edit(
            target=prompt,
            kind=kind,  # type: ignore[arg-type]
            cross_replace_steps=cross_replace_steps,
            self_replace_steps=self_replace_steps,
            weights=_weights(weight),
            blend="auto" if blend == ["auto"] else tuple(blend or ()),
        )
        for prompt in target
    ]
    path = output or Path(f"{inversion.stem}-edit.png")
    known_extension(path)
    paths = [path] if len(edits) == 1 else _numbered(path, len(edits))
    sheet_path = path.with_name(f"{path.stem}-sheet.png")
    for each in (*paths, sheet_path):
        require_writable(each)
    console = Console(stderr=True)
    engine = _load(
        model or source.model,
        device=device,
        dtype=dtype,
        variant=variant,
        revision=revision,
        local_files_only=local_files_only,
    )
    with ProgressBar(console, quiet=quiet) as bar:
        edited = engine.edit(source, edits, guidance_scale=guidance_scale, on_progress=bar)
    records = []
    for index, each in enumerate(paths):
        outputs = {"picture": str(each), "sheet": str(sheet_path)}
        record = edit_record(edited, index, outputs)
        records.append(record)
        pixels = source.picture.unfit(edited.pictures[index])
        save_image(pixels, each, {"pivotal": json.dumps(record)})
    row = edit_row(source, edited, inversion.stem)
    sheet = contact_sheet([row], title="pivotal edit", footer=_footer(engine, source), columns=6)
    save_image(sheet, sheet_path)
    if as_json:
        _print_json(records[0] if len(records) == 1 else {"edits": records})
    elif not quiet:
        console.print(_edit_table(edited, records))
        for each in (*paths, sheet_path):
            console.print(f"saved {each}", markup=False)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="A folder.")] = Path("demo"),
    steps: Annotated[int, typer.Option(help="Steps of the schedule.")] = 50,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Invert, reconstruct and edit a drawn scene and a photograph with the bundled model.

    Example: `pivotal demo -o demo`
    """
    from .demo import run_demo

    console = Console(stderr=True)
    record = run_demo(output, steps, console, quiet=quiet)
    if as_json:
        _print_json(record)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Wrong input: one sentence on stderr and exit code 2; Ctrl-C: 130."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        app(args=arguments, standalone_mode=True)
    except (ValueError, PivotalError, OSError) as error:
        Console(stderr=True).print(
            f"pivotal: {error}", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; torch is not imported for --help
            raise
        reason = str(error).partition("\n")[0]
        Console(stderr=True).print(
            f"pivotal: {reason} Use --dtype float16, fewer targets or the CPU.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(2)


def _load(model: str, **options: Any) -> Engine:
    from .engine import Engine

    return Engine.load(model, **options)


def _weights(given: Sequence[str] | None) -> dict[str, float]:
    weights = {}
    for word, value in _named(given, "weight").items():
        try:
            weights[word] = float(value)
        except ValueError:
            raise ValueError(f"--weight {word}={value}: {value!r} is not a number") from None
    return weights


def _named(given: Sequence[str] | None, what: str) -> dict[str, str]:
    """`name=value` texts as a mapping."""
    values: dict[str, str] = {}
    for text in given or ():
        name, found, value = text.rpartition("=")
        if not found or not name:
            raise ValueError(f"--{what} {text!r}: write name=value")
        if name in values:
            raise ValueError(f"--{what} {name} is given twice")
        values[name] = value
    return values


def _numbered(path: Path, count: int) -> list[Path]:
    return [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, count + 1)]


def _print_json(record: dict[str, Any]) -> None:
    typer.echo(json.dumps(record, allow_nan=False))


def _footer(engine: Engine, inversion: Inversion) -> str:
    return (
        f"{engine.model.name} · {inversion.method} · {inversion.num_inference_steps} steps · "
        f"{inversion.report['dtype']} on {inversion.report['device']}"
    )


def _inversion_table(record: dict[str, Any]) -> Table:
    from .sheets import decibels

    table = Table("", "", show_header=False)
    table.add_row("method", f"{record['method']}, {record['steps']} steps")
    table.add_row("guidance", f"{record['guidance_scale']:g}")
    table.add_row("VAE round trip", decibels(record["vae_psnr"] or float("inf")))
    table.add_row("reconstruction", decibels(record["psnr"] or float("inf")))
    table.add_row("dominant error", record["dominant_error"])
    table.add_row(
        "seconds", f"{record['seconds']['invert']:.1f} of {record['seconds']['total']:.1f}"
    )
    return table


def _edit_table(edited: Edited, records: Sequence[dict[str, Any]]) -> Table:
    from .sheets import decibels

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
