"""`pivotal generate`: text to image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .frames import Frames
from .making import Places, table, write
from .options import (
    Animation,
    Force,
    GuidanceScale,
    ModelOptions,
    NoMetadata,
    Size,
)
from .sampling import PromptPath, SamplingOptions
from .terminal import Terminal
from .values import parse_blend, parse_size, prompt_text

if TYPE_CHECKING:
    from pivotal.engine import Engine


def generate(
    prompt: Annotated[list[str], typer.Argument(metavar="PROMPT", help="One picture each.")],
    sampling: SamplingOptions,
    model: ModelOptions,
    terminal: Terminal,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: generated.png.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first picture; the next has seed + 1, ..")] = 0,
    steps: Annotated[int | None, typer.Option(help="Of the schedule. Default: 50.")] = None,
    step_size: Annotated[
        int | None, typer.Option(help="In place of --steps: trained timesteps between two.")
    ] = None,
    guidance_scale: GuidanceScale = None,
    negative_prompt: Annotated[str, typer.Option(help="What to keep away from.")] = "",
    prompt_blend: Annotated[
        str | None,
        typer.Option(
            metavar="PROMPT=AMOUNT",
            help="Go this far, 0 to 1, from each PROMPT's embedding towards this other prompt's.",
        ),
    ] = None,
    prompt_path: PromptPath = None,
    size: Size = None,
    animation: Animation = None,
    no_metadata: NoMetadata = False,
    force: Force = False,
) -> None:
    """Make pictures from text.

    Example: `pivotal generate "a red circle on a blue background" --seed 3 --steps 20 -o red.png`

    Example: `pivotal generate "a red circle on a gray background" --loss blue:0.9 --loss-every 2
    --sampler euler --prompt-blend "a red star on a gray background=0.5" -o blend.png`
    """
    from pivotal.records import generation_record

    prompts = [prompt_text(each, "PROMPT") for each in prompt]
    blend = None if prompt_blend is None else parse_blend(prompt_blend)
    if prompt_path is not None and blend is None:
        raise ValueError(f"--prompt-path {prompt_path} is for --prompt-blend; give that too")
    places = Places.checked(output, "generated.png", len(prompts), animation, force=force)
    planned = sampling.planned()
    fitted = parse_size(size)
    engine = model.load()
    frames = Frames(edits=False) if animation else None
    given = prompts if blend is None else _blended(engine, prompts, blend, prompt_path, fitted)
    with terminal.progress() as bar:
        made = engine.generate(
            given,
            negative_prompt=negative_prompt,
            num_inference_steps=steps,
            step_size=step_size,
            guidance_scale=guidance_scale,
            seed=seed,
            size=fitted,
            callback_on_step_end=frames,
            on_progress=bar,
            **planned.keywords(fitted or engine.model.default_size),
        )
    more = planned.record()
    if blend is not None:
        way = prompt_path or "linear"
        more["prompt_blend"] = {"prompt": blend[0], "amount": blend[1], "path": way}
    records = [
        {**generation_record(engine.model, made, index, places.of(index)), "prompt": text, **more}
        for index, text in enumerate(prompts)
    ]
    write(
        places,
        engine,
        made,
        made.pictures,
        records,
        frames,
        terminal,
        metadata=not no_metadata,
        force=force,
    )
    terminal.show(records[0] if len(records) == 1 else {"pictures": records}, table(records))
    terminal.saved(places.all())


def _blended(
    engine: Engine,
    prompts: list[str],
    blend: tuple[str, float],
    path: str | None,
    size: tuple[int, int] | None,
) -> list[Any]:
    """Embeddings between each prompt and another."""
    from pivotal.sampling.prompt_arithmetic import interpolate

    other, amount = blend
    way: Any = path or "linear"  # interpolate names the accepted ones
    end = engine.encode(other, size=size)
    return [interpolate(engine.encode(each, size=size), end, amount, path=way) for each in prompts]
