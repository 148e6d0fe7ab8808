"""Optimisers for null-text inversion: decibels and edits against UNet passes, on drawn scenes.

    python benchmarks/null_text_study.py [--scenes 8] [--steps 50] [--only TEXT] [--plot FILE]

Every trial inverts the same scenes, samples them back and edits them; the oracle judges the edits
(`methods.measuring`). Appends a JSON line for each trial and eight scenes to
benchmarks/results/cpu/null_text_study.jsonl, measures nothing twice for the same weights, prints a
table, and draws it where --plot says.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from pivotal.engine import Engine

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from methods.measuring import measure, options_of, scenes_of  # noqa: E402
from methods.results import joined, key_of, rows_of  # noqa: E402
from methods.table import environment  # noqa: E402
from methods.trials import GUIDANCE, Trial  # noqa: E402
from shapes.cases import EVALUATION_SEED  # noqa: E402
from shapes.evaluate import EDITS  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = ROOT / "results" / "cpu" / "null_text_study.jsonl"
GROUP = 8  # scenes in one batch
EXACT = 100.0  # decibels that mean rounding alone


def trials() -> list[Trial]:
    """The variants, most telling first; a label's first word is its family in the plot."""
    search, parallel = "null-text-line-search", "null-text-parallel"
    found = [Trial("Adam, at most 10", "null-text", GUIDANCE)]
    for kind, counts in (
        ("gradient", (1, 2, 3)),
        ("conjugate", (2, 3)),
        ("lbfgs", (2, 3)),
        ("subspace", (2, 3)),
    ):
        for count in counts:
            given = {"direction": kind, "iterations": count}
            found.append(Trial(f"{kind}, {count}", search, GUIDANCE, given))
    for count in (2, 4):
        given = {"iterations": count}
        found.append(Trial(f"parallel, {count}", parallel, GUIDANCE, given))
    for enough in (1e-3, 3e-4):
        given = {"iterations": 6, "enough": enough}
        label = f"residual, until {enough:g}, at most 6"
        found.append(Trial(label, search, GUIDANCE, given))
    found.append(Trial("conjugate, 2, again from 0.5", search, GUIDANCE, {"again_from": 0.5}))
    for probe in (0.02, 0.2):
        found.append(Trial(f"probe {probe:g}, 2", search, GUIDANCE, {"probe": probe}))
    found.append(Trial("Adam, at most 4", "null-text", GUIDANCE, {"inner_steps": 4}))
    return sorted(found, key=lambda trial: trial.label not in MOST_TELLING)


MOST_TELLING = (
    "Adam, at most 10", "gradient, 1", "gradient, 2", "conjugate, 2", "conjugate, 3", "lbfgs, 3",
    "subspace, 3", "parallel, 2",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parse(arguments)
    torch.set_num_threads(1)
    engine = Engine.load(given.model, device="cpu")
    fingerprint = engine.model.fingerprint
    chosen = [trial for trial in trials() if given.only in trial.label]
    asked = []
    for first in range(0, given.scenes, GROUP):
        count = min(GROUP, given.scenes - first)
        scenes = None
        for trial in chosen:
            task = {
                "study": "null-text",
                "label": trial.label,
                "method": trial.method,
                "scale": trial.scale,
                "options": asdict(options_of(trial)),
                "first": first,
                "count": count,
                "steps": given.steps,
                "edits": EDITS,
                "fingerprint": fingerprint,
            }
            asked.append(key_of(task))
            if asked[-1] in {key_of(row) for row in rows_of(given.results, fingerprint)}:
                continue
            scenes = scenes or scenes_of(engine, count, EVALUATION_SEED, first)
            row = {**task, **measure(engine, scenes, trial, given.steps)}
            row |= {**environment(given.model), "command": " ".join(["python", *sys.argv])}
            given.results.parent.mkdir(parents=True, exist_ok=True)
            with given.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
    rows = joined(row for row in rows_of(given.results, fingerprint) if key_of(row) in asked)
    Console(width=140).print(table_of(rows))
    if given.plot is not None:
        plot(rows, given.plot)


def passes(row: dict[str, Any]) -> float:
    """Through the UNet for one image's inversion, forward and backward."""
    return float(row["rows_invert"] + row["rows_backward"])


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    columns = ("latents_db", "picture_db", "colour_success", "shape_success", "outside_db")
    table = Table("", "scenes", "passes", *(name.replace("_", " ") for name in columns))
    for row in rows:
        if "error" in row:
            table.add_row(row["label"], row["error"])
            continue
        shown = ("-" if row[name] is None else f"{row[name]:.2f}" for name in columns)
        table.add_row(row["label"], str(row["scenes"]), f"{passes(row):.0f}", *shown)
    return table


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Three panels over UNet passes: latents (but of exact variants), successful edits, and what
    they leave alone.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    known = [row for row in rows if "error" not in row]
    for row in known:
        kinds = [row[f"{kind}_success"] for kind in ("colour", "shape")]
        shares = [share for share in kinds if share is not None]
        row["success"] = 100 * sum(shares) / len(shares)
    families = list(dict.fromkeys(_family(row) for row in known))  # one colour in all panels
    panels = figure.subplots(1, 3)
    for axes, (name, shown) in zip(
        panels,
        (
            ("latents_db", "reconstruction, dB in latents"),
            ("success", "successful edits by the oracle, %"),
            ("outside_db", "outside the edited objects, dB"),
        ),
        strict=True,
    ):
        inexact = [row for row in known if row["latents_db"] < EXACT]
        _panel(axes, inexact if name == "latents_db" else known, name, families)
        axes.set(xlabel="UNet passes an image, forward and backward", ylabel=shown)
    panels[1].legend(fontsize=8)
    scenes, steps = max(row["scenes"] for row in known), known[0]["steps"]
    figure.suptitle(
        f"Null-text inversion's optimisers: {steps} steps, guidance {GUIDANCE:g}, "
        f"{scenes} scenes of `shapes`",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _family(row: dict[str, Any]) -> str:
    return str(row["label"].split(",")[0].split()[0])


def _panel(axes: Axes, rows: Sequence[dict[str, Any]], name: str, families: Sequence[str]) -> None:
    for place, family in enumerate(families):
        own = [row for row in rows if _family(row) == family]
        own.sort(key=passes)
        x, y = [passes(row) for row in own], [row[name] for row in own]
        marker, colour = "os^Dvx*P"[place % 8], f"C{place}"
        axes.plot(x, y, marker=marker, color=colour, linewidth=0.8, label=family)
        for row, at, high in zip(own, x, y, strict=True):
            text = row["label"].split(family)[1].strip(", ")
            axes.annotate(text, (at, high), fontsize=6, xytext=(3, 3), textcoords="offset points")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--only", default="", help="trials whose label contains this")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a PNG")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
