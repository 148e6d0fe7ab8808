"""Every inversion method, and the studies of their options, measured on drawn scenes.

    PYTHONPATH=benchmarks python -m methods.table [--study table] [--scenes 64] [--minutes 30]

Prints a table, and appends JSON lines to benchmarks/results/cpu/methods.jsonl, one for each trial
and group of scenes. What is there already for these weights is not measured again: a run that was
ended goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from methods.measuring import Scenes, edits_for, measure, options_of, scenes_of
from methods.plots import draw
from methods.results import RESULTS, joined, key_of, rows_of
from methods.together import measure_together
from methods.trials import STUDIES, Trial
from pivotal.engine import Engine
from pivotal.inversion.registry import method_named
from shapes.cases import EVALUATION_SEED

GROUP = 2  # scenes inverted as one batch
TOGETHER = 16  # trials of a study that share batches
COLUMNS = (
    "scenes", "latents_db", "picture_db", "noise_std_ratio", "colour_success", "shape_success",
    "outside_db", "rows_invert", "rows_backward", "seconds_invert",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """Trials on a group of scenes: one of the table's, edited and timed; or some of a study's,
    together in one batch.
    """

    study: str
    trials: tuple[Trial, ...]
    first: int
    count: int
    model: str
    steps: int


_ready: dict[tuple[str, int, int], tuple[Engine, Scenes]] = {}


def run(task: Task) -> list[dict[str, Any]]:
    """One task on one thread; the engine and its scenes are made once a process."""
    torch.set_num_threads(1)
    place = (task.model, task.first, task.count)
    if place not in _ready:
        engine = next(
            (made for (name, *_), (made, _) in _ready.items() if name == task.model), None
        )
        engine = engine or Engine.load(task.model, device="cpu")
        _ready[place] = engine, scenes_of(engine, task.count, EVALUATION_SEED, task.first)
    engine, scenes = _ready[place]
    asked = _asked(task)
    if task.study == "table":
        found = [measure(engine, scenes, trial, task.steps) for trial in task.trials]
    else:
        found = measure_together(engine, scenes, task.trials, task.steps)
    known = {"fingerprint": engine.model.fingerprint}
    return [{**each, **known, **row} for each, row in zip(asked, found, strict=True)]


def tasks_of(
    names: Sequence[str],
    only: str,
    scenes: int,
    model: str,
    steps: int,
    labels: Sequence[str] | None = None,
) -> list[Task]:
    """The first group of scenes of every trial, then the second, ..: a run that ends early has
    measured all trials alike.
    """
    found = [
        Task(name, (trial,), first, min(GROUP, most - first), model, steps)
        for name in names
        for trial in STUDIES[name]()
        if only in trial.label and (labels is None or trial.label in labels)
        for most in (min(scenes, trial.scenes),)
        for first in range(0, most, GROUP)
    ]
    return sorted(found, key=lambda task: task.first)  # stable: the trials' order within a group


def main() -> None:
    given = _parse()
    started = time.monotonic()
    names = list(STUDIES) if given.study == "all" else given.study.split(",")
    tasks = tasks_of(names, given.only, given.scenes, given.model, given.steps, given.label)
    fingerprint = Engine.load(given.model, device="cpu").model.fingerprint
    console = Console(width=170)
    kept = [] if given.print_only else rows_of(given.results, fingerprint)
    known = {key_of(row) for row in kept}
    left = [task for task in tasks if not _keys(task, fingerprint) <= known]
    console.print(f"{len(left)} of {len(tasks)} groups of scenes are not measured yet")
    deadline = None if given.minutes is None else started + 60 * given.minutes
    for row in _all(together(left, TOGETHER), given.processes, deadline):
        kept.append(row)
        if not given.print_only:
            given.results.parent.mkdir(parents=True, exist_ok=True)
            with given.results.open("a") as file:
                file.write(json.dumps({**row, **environment(given.model)}) + "\n")
        console.print(f"{row['study']}: {row['label']}: {_shown(row, 'picture_db')}")
    asked = set[str]().union(*(_keys(task, fingerprint) for task in tasks))
    for name in names:
        chosen = [row for row in kept if row["study"] == name and key_of(row) in asked]
        rows = joined(chosen)
        console.print(_table(name, rows))
        if given.plot is not None and (path := draw(name, rows, given.plot)) is not None:
            console.print(f"{path}")


def together(tasks: Sequence[Task], at_once: int) -> list[Task]:
    """Studies' tasks on the same scenes as one, up to so many trials; the table's stay alone."""
    found: list[Task] = []
    for task in tasks:
        last = found[-1] if found else None
        if (
            last is not None
            and task.study != "table"
            and replace(last, trials=task.trials) == task
            and len(last.trials) < at_once
        ):
            found[-1] = replace(last, trials=(*last.trials, *task.trials))
        else:
            found.append(task)
    return found


def _asked(task: Task) -> list[dict[str, Any]]:
    """What the rows are looked up by, besides the weights."""
    scenes = {"first": task.first, "count": task.count}
    return [{**asked_of(task.study, trial, task.steps), **scenes} for trial in task.trials]


def asked_of(study: str, trial: Trial, steps: int) -> dict[str, Any]:
    """What names a trial's rows, besides the weights and the scenes."""
    return {
        "study": study,
        "label": trial.label,
        "method": trial.method,
        "scale": trial.scale,
        "options": asdict(options_of(trial)),
        "steps": steps,
        "edits": edits_for(method_named(trial.method)) if study == "table" else None,
    }


def _keys(task: Task, fingerprint: str) -> set[str]:
    return {key_of({**asked, "fingerprint": fingerprint}) for asked in _asked(task)}


def _all(tasks: list[Task], processes: int, deadline: float | None) -> Iterator[dict[str, Any]]:
    """Rows as they come, here or from processes of one thread each; none is begun after the
    deadline.
    """
    if processes == 1:
        for task in tasks:
            if deadline is None or time.monotonic() < deadline:
                yield from run(task)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting = [pool.submit(run, task) for task in tasks]
        for done in as_completed(waiting):
            if not done.cancelled():
                yield from done.result()
            if deadline is not None and time.monotonic() > deadline:
                for future in waiting:
                    future.cancel()


def _table(name: str, rows: list[dict[str, Any]]) -> Table:
    known = [row["vae_db"] for row in rows]
    vae = f"{sum(known) / len(known):.2f}" if known else "-"
    table = Table(title=f"{name}: the autoencoder alone gives {vae} dB")
    for column in ("", *COLUMNS):
        table.add_column(column.replace("_", " "), justify="left" if not column else "right")
    for row in rows:
        table.add_row(row["label"], *[_shown(row, column) for column in COLUMNS])
    return table


def _shown(row: dict[str, Any], column: str) -> str:
    if "error" in row:
        return "failed"
    value = row[column]
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--study", default="table", help=f"some of {', '.join(STUDIES)}, with commas; or all"
    )
    parser.add_argument("--only", default="", help="trials whose label contains this")
    parser.add_argument("--label", action="append", help="a trial's whole label; may repeat")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--scenes", type=int, default=64, help="at most; some trials take fewer")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="begin nothing after them")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="for the studies' plots")
    parser.add_argument("--print-only", action="store_true", help="read and write no rows")
    given = parser.parse_args()
    for name in given.study.split(","):
        if name != "all" and name not in STUDIES:
            parser.error(f"--study {name!r} is unknown; accepted are all, {', '.join(STUDIES)}")
    return given


def environment(model: str) -> dict[str, Any]:
    """What a reader needs to repeat a row."""

    def git(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return {
        "model": model,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": "python -m " + " ".join([f"methods.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "machine": {"cpu": platform.machine(), "python": platform.python_version(), "threads": 1},
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }


if __name__ == "__main__":
    main()
