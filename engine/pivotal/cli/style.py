"""`pivotal style`: an inversion's noise, sampled under another prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .frames import Frames
from .making import Places, table, write
from .options import Animation, Force, GuidanceScale, ModelOptions, NoMetadata
from .sampling import PromptPath, SamplingOptions
from .terminal import Terminal
from .values import prompt_text


def style(
    inversion: Annotated[Path, typer.Argument(help="A file that `pivotal invert` made.")],
    target: Annotated[list[str], typer.Option(help="The prompt to go to; may repeat.")],
    sampling: SamplingOptions,
    model: ModelOptions,
    terminal: Terminal,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Default: INVERSION-style.png."),
    ] = None,
    amount: Annotated[
        float, typer.Option(help="How far to go from the source's prompt (0) to --target (1).")
    ] = 1.0,
    prompt_path: PromptPath = None,
    guidance_scale: GuidanceScale = None,
    negative_prompt: Annotated[
        str | None,
        typer.Option(help="What guidance leads away from. Default: the inversion's own."),
    ] = None,
    seed: Annotated[int, typer.Option(help="For samplers that draw fresh noise.")] = 0,
    animation: Animation = None,
    no_metadata: NoMetadata = False,
    force: Force = False,
) -> None:
    """Style transfer: start from an image's inverted noise, go where another prompt says.

    The noise keeps the rough layout; `edit` keeps all that the words do not change.

    Example: `pivotal style cat.safetensors --target "a cat on a sofa, oil painting" --amount 0.7`
    """
    from pivotal.inversion_file import read_inversion
    from pivotal.records import styling_record

    source = read_inversion(inversion)
    targets = [prompt_text(each, "--target") for each in target]
    places = Places.checked(
        output, f"{inversion.stem}-style.png", len(targets), animation, force=force
    )
    planned = sampling.planned(source.picture)
    engine = model.load(source.model)
    frames = Frames(edits=False) if animation else None
    with terminal.progress() as bar:
        made = engine.style(
            source,
            targets,
            amount=amount,
            path=prompt_path or "linear",  # type: ignore[arg-type]  # the engine names them
            negative_prompt=negative_prompt,
            guidance_scale=guidance_scale,
            seed=seed,
            callback_on_step_end=frames,
            on_progress=bar,
            **planned.keywords(source.picture.size),
        )
    way = {"amount": amount, "path": prompt_path or "linear"}
    records = [
        {
            **styling_record(engine.model, source, made, index, places.of(index)),
            "prompt": text,
            **way,
            **planned.record(),
        }
        for index, text in enumerate(targets)
    ]
    write(
        places,
        engine,
        made,
        [source.picture.unfit(each) for each in made.pictures],
        records,
        frames,
        terminal,
        metadata=not no_metadata,
        force=force,
    )
    terminal.show(records[0] if len(records) == 1 else {"styles": records}, table(records))
    terminal.saved(places.all())
