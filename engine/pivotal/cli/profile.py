"""`pivotal profile`: where the time of an inversion's or an edit's steps goes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .bench import quiet_profiler
from .options import Force, Method, ModelOptions, Steps
from .outputs import check_outputs, staged
from .terminal import Terminal

if TYPE_CHECKING:
    from pivotal.bench.profiling import Profile
    from pivotal.engine import Engine

PHASES = ("invert", "fit", "sample")
_SHOWN = 25
_NOTE = (
    "Roofline: the least time that a large matrix product's FLOP/s and a large copy's bytes/s, "
    "measured now, allow for these operations one by one; data in a cache may beat it. "
)
_CPU = (
    "On a CPU seconds are the operations' own; launches, NVTX ranges and a memory snapshot mean "
    "something on a GPU only."
)


def profile(
    model: ModelOptions,
    terminal: Terminal,
    phase: Annotated[
        str,
        typer.Option(help="`invert`, `fit` (null embeddings), or `sample` (an edit)."),
    ] = "invert",
    method: Method = "direct",
    steps: Steps = 10,
    first: Annotated[int, typer.Option(help="The first step profiled, counted from 0.")] = 1,
    last: Annotated[int | None, typer.Option(help="The last one. Default: the first.")] = None,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE", help="The trace, for ui.perfetto.dev."),
    ] = Path("profile.trace.json.gz"),
    memory_snapshot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also the allocator's history; on a GPU only."),
    ] = None,
    force: Force = False,
) -> None:
    """Profile chosen steps after a warm-up, grouped by the UNet's parts.

    Example: `pivotal profile --steps 2 -o trace.json.gz`
    """
    quiet_profiler()
    from pivotal.bench.profiling import profile_run
    from pivotal.bench.window import Window

    end = first if last is None else last
    if phase not in PHASES:
        raise ValueError(f"--phase {phase!r} is unknown; accepted are {', '.join(PHASES)}")
    if not 0 <= first <= end < steps:
        raise ValueError(
            f"steps {first} to {end} of {steps}; 0 <= --first <= --last < --steps is expected"
        )
    paths = [output] if memory_snapshot is None else [output, memory_snapshot]
    check_outputs(paths, force=force)
    engine = model.load()
    work = _work(engine, phase, method, steps)

    def run(inside: AbstractContextManager[Any]) -> None:
        window = Window(phase, first, end, inside)
        work(window)
        window.close()

    with staged(paths, terminal.interruption, force=force) as places:
        found = profile_run(
            run,
            engine.model.unet.unet,
            engine.model.device,
            trace=places[output],
            snapshot=None if memory_snapshot is None else places[memory_snapshot],
        )
    note = _NOTE if engine.model.device.type == "cuda" else _NOTE + _CPU
    record = {
        "trace": str(output),
        "phase": phase,
        "method": method,
        "steps": [first, end],
        "seconds": found.seconds,
        "ceilings": {
            "flops_per_second": found.ceilings.flops_per_second,
            "bytes_per_second": found.ceilings.bytes_per_second,
        },
        "kernels": [each.record() for each in found.kernels],
        "note": note,
    }
    terminal.answer(record, _table(found), note)
    terminal.saved(paths)


def _work(engine: Engine, phase: str, method: str, steps: int) -> Callable[[Any], object]:
    """The engine's own call, on the bundled picture, told to a listener."""
    from pivotal.bench.suites.plan import PROMPT, TARGETS, picture

    def invert(listener: Any) -> Any:
        return engine.invert(
            picture(), PROMPT, method=method, num_inference_steps=steps, on_progress=listener
        )

    if phase != "sample":
        return invert
    inversion = invert(None)
    return lambda listener: engine.edit(inversion, TARGETS[0], on_progress=listener)


def _table(found: Profile) -> Any:
    from rich.table import Column, Table

    whole = sum(each.seconds for each in found.kernels)
    headings = ("kind", "heaviest", "calls", "ms", "share", "roofline")
    table = Table(Column("part", no_wrap=True), *headings)
    for each in found.kernels[:_SHOWN]:
        percent = each.percent_of_roofline
        table.add_row(
            each.part,
            each.kind,
            each.heaviest,
            str(each.calls),
            f"{1e3 * each.seconds:.2f}",
            f"{each.seconds / whole:.0%}",
            "-" if percent is None else f"{percent:.0f} %",
        )
    table.caption = f"{1e3 * found.seconds:.1f} ms in all, under the profiler"
    return table
