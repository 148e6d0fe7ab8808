"""`pivotal compare`: inversion methods beside each other on one image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .completion import complete_methods
from .editing import EditOptions
from .masks import read_mask
from .options import Force, GuidanceScale, ModelOptions, PictureSize, Policy, Steps
from .outputs import check_outputs, chosen, staged
from .terminal import Terminal
from .values import picture_size, prompt_text

if TYPE_CHECKING:
    from pivotal.comparison import Comparison


def compare(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="PNG, JPEG, WebP, GIF, BMP or TIFF.")
    ],
    prompt: Annotated[str, typer.Option(help="What the image shows.")],
    options: EditOptions,
    model: ModelOptions,
    terminal: Terminal,
    target: Annotated[str | None, typer.Option(help="Edit to this prompt as well.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="One of `pivotal methods`; may repeat. Default: all.",
            autocompletion=complete_methods,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: compare.png.")
    ] = None,
    steps: Steps = 50,
    guidance_scale: GuidanceScale = None,
    negative_prompt: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|BOX",
            help="Light where the edit is wanted; how much is kept is measured elsewhere. Default: "
            "the regions of the words that differ, to which the edit is confined.",
        ),
    ] = None,
    size: PictureSize = None,
    policy: Policy = "fit",
    force: Force = False,
) -> None:
    """Run inversion methods on one image: a contact sheet, and figures of each.

    back, lat: decibels of the picture and of the latents that were sampled back. mean, std, KS,
    corr: how noise-like the noise is (0, 1 and the drawn noise's are best). kept: decibels of the
    edit where nothing was to change.

    Example: `pivotal compare photo.jpg --prompt "a cat on a sofa" --target "a dog on a sofa"
    --method ddim --method direct -o methods.png`
    """
    from pivotal.comparison_sheet import comparison_sheet, figures_table
    from pivotal.images import fit, known_extension, read_image, save_image

    text = prompt_text(prompt, "--prompt")
    if target is None and options != EditOptions():
        raise ValueError("options of an edit are for --target; give it, or leave them out")
    if mask is None and not options.blend:
        options = replace(options, blend=["auto"])
    edit = None if target is None else options.edits([target])[0]
    path = chosen(output, "compare.png", force=force)
    known_extension(path)
    check_outputs([path], force=force)
    fitted = picture_size(size)
    source = read_image(image)
    engine = model.load()
    allowed = None
    if mask is not None:
        picture = fit(
            source,
            fitted or engine.model.default_size,
            policy,  # type: ignore[arg-type]
            multiple=engine.model.autoencoder.scale,
        )
        allowed = read_mask(mask, picture)
    with terminal.progress() as bar:
        compared = engine.compare(
            image,
            text,
            target=edit,
            methods=method,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            mask=allowed,
            size=fitted,
            policy=policy,  # type: ignore[arg-type]  # the engine names the accepted ones
            on_progress=bar,
        )
    sheet = comparison_sheet(compared)
    with staged([path], terminal.interruption, force=force) as places:
        save_image(sheet, places[path])
    record = {**compared.record(), "outputs": {"sheet": str(path)}}
    terminal.show(record, shown_table(figures_table(compared), compared), *_reasons(compared))
    terminal.saved([path])


def shown_table(figures: Any, compared: Comparison) -> Any:
    """The figures for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from pivotal.records import decibels

    # Ten columns, the first with names of 21 letters, in 80.
    table = Table(padding=0, box=SIMPLE_HEAD, show_edge=False)
    for place, heading in enumerate(figures.header):
        table.add_column(heading, justify="right" if place else "left")
    for line in figures.rows:
        table.add_row(*line)
    found = compared.done[0].reconstruction
    if found is not None:
        table.caption = f"the VAE's own round trip: {decibels(found.vae_psnr)}"
    return table


def _reasons(compared: Comparison) -> list[str]:
    return [f"{each.method} can't: {each.error}" for each in compared.methods if each.error]
