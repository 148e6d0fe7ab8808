"""`pivotal generate`: text to image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .frames import Frames, write_animation
from .options import (
    Animation,
    Force,
    GuidanceScale,
    ModelOptions,
    NoMetadata,
    Size,
    Steps,
)
from .outputs import check_outputs, chosen, free, numbered, staged
from .terminal import Terminal
from .values import parse_size, prompt_text


def generate(
    prompt: Annotated[list[str], typer.Argument(metavar="PROMPT", help="One picture each.")],
    model: ModelOptions,
    terminal: Terminal,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: generated.png.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first picture; the next has seed + 1, ..")] = 0,
    steps: Steps = 50,
    guidance_scale: GuidanceScale = None,
    negative_prompt: Annotated[str, typer.Option(help="What to keep away from.")] = "",
    size: Size = None,
    animation: Animation = None,
    no_metadata: NoMetadata = False,
    force: Force = False,
) -> None:
    """Make pictures from text.

    Example: `pivotal generate "a red circle on a blue background" --seed 3 --steps 20 -o red.png`
    """
    from pivotal.figures import animation_extension
    from pivotal.images import known_extension, save_image
    from pivotal.records import embedded, generation_record

    prompts = [prompt_text(each, "PROMPT") for each in prompt]
    path = chosen(output, "generated.png", force=force)
    known_extension(path)
    if animation is not None:
        animation_extension(animation)
    pictures = numbered(path, len(prompts))
    if output is None and not force:
        pictures = [free(each) for each in pictures]
    animations = [] if animation is None else numbered(animation, len(prompts))
    check_outputs([*pictures, *animations], force=force)
    fitted = parse_size(size)
    engine = model.load()
    frames = Frames(edits=False) if animation else None
    with terminal.progress() as bar:
        made = engine.generate(
            prompts,
            negative_prompt=negative_prompt,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            seed=seed,
            size=fitted,
            callback_on_step_end=frames,
            on_progress=bar,
        )
    records = []
    ways = [] if frames is None else frames.trajectories()
    with staged([*pictures, *animations], terminal.interruption, force=force) as places:
        for index, each in enumerate(pictures):
            outputs = {"picture": str(each)}
            if animations:
                outputs["animation"] = str(animations[index])
            record = generation_record(engine.model, made, index, outputs)
            records.append(record)
            settings, last = None if no_metadata else embedded(record), made.pictures[index]
            save_image(last, places[each], settings)
            if animations:
                moving = places[animations[index]]
                write_animation(engine, ways[index], last, moving, terminal, settings)
    terminal.show(records[0] if len(records) == 1 else {"pictures": records}, _table(records))
    terminal.saved([*pictures, *animations])


def _table(records: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("prompt", "seed", "steps", "guidance", "seconds")
    for record in records:
        table.add_row(
            record["prompt"],
            str(record["seed"]),
            str(record["steps"]),
            f"{record['guidance_scale']:g}",
            f"{record['seconds']['total']:.1f}",
        )
    return table
