"""The `shapes` benchmark's cases as tasks of the evaluation."""

from __future__ import annotations

from functools import partial

from pivotal.bench.evaluation import Task
from pivotal.bench.shapes.edits import SEED, Case, cases
from pivotal.bench.shapes.scenes import draw
from pivotal.bench.shapes.verdict import succeeded, unedited
from pivotal.editing.edit import Edit


def tasks(count: int, seed: int = SEED) -> list[Task]:
    """`count` scenes of every kind of edit."""
    return [
        _task(case, f"{case.kind} {number % count}")
        for number, case in enumerate(cases(count, seed))
    ]


def _task(case: Case, name: str) -> Task:
    edit = Edit(case.target, blend=case.blend, weights=case.weights, **case.windows)
    return Task(
        name, case.kind, draw(case.scene)[0], case.prompt, edit, unedited(case),
        partial(succeeded, case),
    )  # fmt: skip
