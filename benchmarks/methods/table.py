"""Every inversion method, and the studies of their options, measured on drawn scenes.

    PYTHONPATH=benchmarks python -m methods.table [--study table] [--scenes 4] [--processes 1]

Prints a table, and appends one JSON line a trial to benchmarks/results/cpu/methods.jsonl.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from methods.measuring import Scenes, measure, scenes_of
from methods.trials import STUDIES, Trial
from pivotal.engine import Engine
from shapes.cases import EVALUATION_SEED

RESULTS = Path(__file__).resolve().parents[1] / "results" / "cpu" / "methods.jsonl"
COLUMNS = (
    "latents_db", "picture_db", "noise_std_ratio", "rows_invert", "rows_backward", "rows_replay",
    "seconds_invert",
)  # fmt: skip

_ready: dict[tuple[str, int], tuple[Engine, Scenes]] = {}


def run(trial: Trial, model: str, scenes: int, steps: int) -> dict[str, Any]:
    """One trial on one thread; the engine and the scenes are made once a process."""
    torch.set_num_threads(1)
    if (model, scenes) not in _ready:
        engine = Engine.load(model, device="cpu")
        _ready[model, scenes] = (engine, scenes_of(engine, scenes, EVALUATION_SEED))
    return measure(*_ready[model, scenes], trial, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--study", default="table", choices=[*STUDIES, "all"])
    parser.add_argument("--only", default="", help="trials whose label contains this")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--print-only", action="store_true", help="write nothing")
    given = parser.parse_args()
    names = list(STUDIES) if given.study == "all" else [given.study]
    trials = [(name, t) for name in names for t in STUDIES[name]() if given.only in t.label]
    console = Console(width=150)
    rows: list[dict[str, Any]] = []
    for (study, trial), figures in zip(trials, _all(trials, given), strict=True):
        row = {"study": study, "scenes": given.scenes, "steps": given.steps, **figures}
        rows.append(row)
        if not given.print_only:
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps({**row, **environment(given.model)}) + "\n")
        console.print(f"{study}: {trial.label}: {_shown(row, 'picture_db')} dB", highlight=False)
    for name in names:
        console.print(_table(name, [row for row in rows if row["study"] == name]))


def _all(trials: list[tuple[str, Trial]], given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Figures in the trials' order, here or in processes of one thread each."""
    each = (given.model, given.scenes, given.steps)
    if given.processes == 1:
        for _, trial in trials:
            yield run(trial, *each)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.processes, mp_context=context) as pool:
        tasks = [pool.submit(run, trial, *each) for _, trial in trials]
        for task in tasks:
            yield task.result()


def _table(name: str, rows: list[dict[str, Any]]) -> Table:
    vae = f"{rows[0]['vae_db']:.2f}" if rows else "-"
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
    return "-" if value is None else f"{value:.2f}"


def environment(model: str) -> dict[str, Any]:
    """What a reader needs to repeat a row."""

    def git(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return {
        "model": model,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": "python -m " + " ".join(["methods.table", *sys.argv[1:]]),
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "machine": {"cpu": platform.machine(), "python": platform.python_version(), "threads": 1},
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }


if __name__ == "__main__":
    main()
