"""Try an edit's settings on the tuning scenes: `python -m shapes.tune` (PYTHONPATH=benchmarks).

Each scene is inverted once; every combination of the given values is then judged on it.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pivotal.bench.shapes.scenes import Image, draw
from pivotal.editing.edit import Edit
from shapes.cases import TUNING_SEED, EditCase, edit_cases
from shapes.evaluate import GUIDANCE, engine_of
from shapes.judge import EditVerdict, judge_edit
from shapes.report import CONDITIONS, save_sheet

Tried = list[tuple[EditVerdict, Image]]


def try_settings(case: EditCase, model: str, settings: list[dict[str, Any]]) -> Tried:
    """The verdict and the picture of every setting, after one null-text inversion."""
    engine = engine_of(model)
    inversion = engine.invert(
        draw(case.scene)[0], case.prompt, method="null-text", guidance_scale=GUIDANCE
    )
    tried = []
    for setting in settings:
        edited = engine.edit(inversion, Edit(case.target, blend=case.words, **setting))
        picture = np.asarray(edited.pictures[0])
        tried.append((judge_edit(case, picture), picture))
    return tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=("colour", "shape"), required=True)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--cross", type=float, nargs="+", default=[0.8])
    parser.add_argument("--self", type=float, nargs="+", default=[0.4], dest="own")
    parser.add_argument("--threshold", type=float, nargs="+", default=[0.3])
    parser.add_argument("--blend-start", type=float, nargs="+", default=[0.2])
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--sheet", type=Path)
    given = parser.parse_args()
    settings = [
        {
            "cross_replace_steps": cross,
            "self_replace_steps": own,
            "blend_threshold": threshold,
            "blend_start": start,
        }
        for cross, own, threshold, start in itertools.product(
            given.cross, given.own, given.threshold, given.blend_start
        )
    ]
    cases = [case for case in edit_cases(2 * given.scenes, TUNING_SEED) if case.kind == given.kind]
    context = multiprocessing.get_context("spawn")
    console = Console(width=110)
    work = partial(try_settings, model=given.model, settings=settings)
    with ProcessPoolExecutor(given.processes, mp_context=context) as pool:
        results = list(track(pool.map(work, cases), "scenes", len(cases), console=console))
    table = Table("cross", "self", "threshold", "start", "success", *CONDITIONS, "dB")
    for number, setting in enumerate(settings):
        verdicts = [tried[number][0] for tried in results]
        table.add_row(
            *(str(value) for value in setting.values()),
            f"{np.mean([verdict.success for verdict in verdicts]):.2f}",
            *(f"{np.mean([getattr(v, name) for v in verdicts]):.2f}" for name in CONDITIONS),
            f"{np.mean([verdict.outside_db for verdict in verdicts]):.1f}",
        )
    console.print(table)
    if given.sheet is not None:
        columns = [
            np.concatenate([draw(case.scene)[0], *(picture for _, picture in tried)])
            for case, tried in zip(cases, results, strict=True)
        ]
        save_sheet(np.concatenate(columns, axis=1), given.sheet)


if __name__ == "__main__":
    main()
