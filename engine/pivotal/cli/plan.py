"""`pivotal plan`: how much memory jobs would need, before a weight is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Method, ModelOptions, Option, Size, Steps
from .terminal import Terminal
from .values import named, parse_size

if TYPE_CHECKING:
    from pivotal.runtime.memory_plan import MemoryPlan


def plan(
    model: ModelOptions,
    terminal: Terminal,
    method: Method = "null-text",
    images: Annotated[int, typer.Option(help="Inverted, or generated, at once.")] = 1,
    targets: Annotated[int, typer.Option(help="Of one edit.")] = 1,
    steps: Steps = 50,
    option: Option = None,
    size: Size = None,
) -> None:
    """Say how much memory inverting, editing and generating would need; no weights are read.

    Example: `pivotal plan --model random:sdxl --dtype float16 --size 1024x1024`
    """
    from rich.table import Table

    from pivotal.inversion.registry import method_named
    from pivotal.model.load import default_size
    from pivotal.model.located import described
    from pivotal.planning import Planner
    from pivotal.runtime.memory_plan import NetworkMemory, said
    from pivotal.runtime.precision import precision_of
    from pivotal.schedule import NoiseLevels, ScheduleConfig

    for name in ("lora", "embedding", "vae", "tokenizer"):
        if getattr(model, name):
            raise ValueError(f"--{name} means nothing here: no weights are read; leave it out")
    family, configs = described(
        model.model or "shapes",
        variant=model.variant,
        revision=model.revision,
        local_files_only=model.local_files_only,
        family=model.family,
        prediction_type=model.prediction_type,
    )
    networks = NetworkMemory(
        configs,
        family,
        precision_of(model.dtype),
        gradient_checkpointing=model.gradient_checkpointing,
        tiled_autoencoder=model.tiled_vae,
        offloaded=model.offload,
        chunks=model.long_prompts,
    )
    pixels = parse_size(size) or default_size(
        configs["unet"].get("sample_size"), networks.scale, family
    )
    if any(side % networks.scale for side in pixels):
        raise ValueError(f"--size {size}: multiples of {networks.scale} are possible")
    chosen = method_named(method)
    options = chosen.options_from(named(option, "option"))
    schedule = NoiseLevels(ScheduleConfig.from_diffusers(configs["scheduler"])).schedule(steps)
    planner = Planner(networks, model.bytes_allowed())
    plans = [
        planner.job(chosen, options, schedule, pixels, images=images),
        planner.job(None, options, schedule, pixels, targets=targets),
        planner.job(None, options, schedule, pixels, images=images),
    ]
    table = Table("job", "weights", "a row", "rows at once", "kept", "VAE", "at most")
    for each in plans:
        rows = f"{each.rows_at_once} of {each.rows}" if each.fits else f"0 of {each.rows}"
        figures = (each.weights, each.row, each.state, each.autoencoder, each.peak())
        weights, row, state, autoencoder, most = map(said, figures)
        table.add_row(each.job, weights, row, rows, state, autoencoder, most)
    terminal.answer({"plans": [_record(each) for each in plans]}, table)


def _record(plan: MemoryPlan) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        **{name: each for name, each in asdict(plan).items() if name != "batch"},
        "row": plan.row,
        "rows_at_once": plan.rows_at_once,
        "fits": plan.fits,
        "peak": plan.peak(),
    }
