"""`pivotal bench`: seconds an image, on this machine, that others can trust and repeat."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import command, expanded
from .completion import complete_dtypes, complete_models
from .options import Force
from .outputs import check_outputs, staged
from .terminal import Terminal
from .values import parse_size

if TYPE_CHECKING:
    from pivotal.bench.compare import Comparison

app = typer.Typer(
    help="Seconds an image, on this machine, that others can trust and repeat.",
    epilog="Example: `pivotal bench --suite kernels --seconds 0`",
    rich_markup_mode="markdown",
)
SLOWER = 1  # the exit code where something got slower

_RESULTS = Path("benchmarks/results")


def quiet_profiler() -> None:
    """Torch's profiler announces itself on stderr unless told so before torch is imported."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def bench(
    terminal: Terminal,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="`kernels`, `unet`, `methods`, `edits`, `end-to-end`, `concurrency`, "
                     "`calls`, `cold-start`; may repeat. Default: all."),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(help="`sd1`, `sd2`, `sdxl` (the true architecture with random weights), "
                     "`shapes`."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A model in place of a family's.", autocompletion=complete_models),
    ] = None,
    device: Annotated[str, typer.Option(help="`cpu`, `cuda`, `cuda:1`.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="The UNet's.", autocompletion=complete_dtypes)
    ] = "float32",
    steps: Annotated[int, typer.Option(help="Of inversions and edits.")] = 10,
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Engines compiled; `unet` both ways. Minutes to begin."),
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Every case: hours in place of minutes.")] = (
        False
    ),
    seconds: Annotated[float, typer.Option(help="At most, of each case.")] = 5.0,
    rounds: Annotated[int, typer.Option(help="At most, of each case.")] = 30,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Pixels of the pictures of `unet`. Default: the model's."),
    ] = None,
    exported: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="What `pivotal export` wrote, timed beside torch."),
    ] = None,
    results: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Rows are appended to FOLDER/DEVICE/bench.jsonl.")
    ] = _RESULTS,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out what this code has timed there already.")
    ] = False,
) -> None:  # fmt: skip
    """Measure this machine: kernels, the network, methods, edits, end to end, cold start.

    Example: `pivotal bench --suite kernels --seconds 0`
    """
    if terminal.context.invoked_subcommand is not None:
        return
    if model is not None and family is not None:
        raise ValueError(f"--model {model} beside --family {family}; give one of them")
    quiet_profiler()
    import torch

    from pivotal.bench.measuring import measure
    from pivotal.bench.rounds import Effort
    from pivotal.bench.rows import append, timed_keys
    from pivotal.bench.suites.plan import Plan
    from pivotal.bench.suites.registry import cases_of
    from pivotal.bench.timing import Stopwatch
    from pivotal.query import Progress

    chosen = model or ("shapes" if family in (None, "shapes") else f"random:{family}")
    plan = Plan(
        chosen, device, dtype, steps, quick=not full, exported=exported, size=parse_size(size),
        compile=compile,
    )  # fmt: skip
    cases = list(cases_of(suite or (), plan))
    effort = Effort(rounds=rounds, fewest=min(rounds, Effort.fewest), seconds=seconds)
    if any(case.settings.get("model") for case in cases):
        _ = plan.engine  # what can't be loaded is said now, not in every row
    path = results / Stopwatch(plan.torch_device).name / "bench.jsonl"
    if resume:
        known = timed_keys(path)
        cases = [case for case in cases if case.key not in known]
    rows = []
    with terminal.progress() as bar:
        for row in measure(
            cases,
            plan.torch_device,
            effort,
            dtype=getattr(torch, dtype, torch.float32),
            listener=lambda what, done, most: bar(Progress(what, done, most)),
        ):
            append(path, row)
            rows.append(row)
    terminal.show({"file": str(path), "rows": rows}, _timed(rows))
    terminal.saved([path])


app.callback(invoke_without_command=True)(expanded(bench))


@command(app, "compare")
def compare_results(
    terminal: Terminal,
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B [C ..]",
            help="Files or folders of results; FILE@COMMIT takes that commit's rows.",
        ),
    ],
) -> None:
    """Compare machines or commits: ratios with 95 % intervals. Exit code 1 if one is slower, unless
    the same machine was as much slower itself.

    Example: `pivotal bench compare before.jsonl after.jsonl`
    """
    from pivotal.bench.compare import compare, machine_ratio
    from pivotal.bench.rows import read

    if len(results) < 2:
        raise ValueError(f"{len(results)} results; give at least two to compare")
    first, *others = results
    before, records, shown, slower = read(first), [], [], False
    for other in others:
        after = read(other)
        found, machine = compare(before, after), machine_ratio(before, after)
        slower = slower or any(each.verdict == "slower" for each in found)
        records.append(
            {
                "before": str(first),
                "after": str(other),
                "machine_ratio": machine and machine.middle,
                "cases": [each.record() for each in found],
            }
        )
        shown.append(_compared(found, f"{other} over {first}"))
        if machine is not None:
            shown.append(
                f"the machine itself, by a large matrix product: {machine.middle:.2f} times the "
                f"seconds ({machine.low:.2f} to {machine.high:.2f})"
            )
    terminal.answer({"comparisons": records, "slower": slower}, *shown)
    if slower:
        raise typer.Exit(SLOWER)


@command(app, "report")
def write_report(
    terminal: Terminal,
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS ..", help="Files or folders of results.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="`.html`; `.md` comes beside it.")
    ] = Path("bench.html"),
    force: Force = False,
) -> None:  # fmt: skip
    """Write a self-contained HTML page with plots, and the same tables as markdown.

    Example: `pivotal bench report before.jsonl -o report.html`
    """
    from pivotal.bench.report import html, markdown
    from pivotal.bench.rows import read

    if output.suffix != ".html":
        raise ValueError(f"--output {str(output)!r}: a page is written as .html")
    paths = [output, output.with_suffix(".md")]
    check_outputs(paths, force=force)
    rows = [row for each in results for row in read(each)]
    makers: list[Callable[[Any], str]] = [html, markdown]
    with staged(paths, terminal.interruption, force=force) as places:
        for path, make in zip(paths, makers, strict=True):
            places[path].write_text(make(rows), "utf-8")
    terminal.show({"files": [str(path) for path in paths], "rows": len(rows)})
    terminal.saved(paths)


def _timed(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    from pivotal.bench.tables import HEADINGS, cells

    table = Table(*HEADINGS)
    for row in rows:
        table.add_row(*cells(row))
    return table


def _compared(found: list[Comparison], title: str) -> Any:
    from rich.table import Table

    table = Table("suite", "case", "before", "after", "ratio", "95 %", "verdict", title=title)
    for each in found:
        ratio = each.ratio
        table.add_row(
            each.suite,
            each.case,
            "-" if each.before is None else f"{each.before:.4g} s",
            "-" if each.after is None else f"{each.after:.4g} s",
            "-" if ratio is None else f"{ratio.middle:.3f}",
            "-" if ratio is None else f"{ratio.low:.3f} to {ratio.high:.3f}",
            each.verdict + (f": {each.reason}" if each.reason else ""),
        )
    return table
