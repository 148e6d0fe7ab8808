"""All suites by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from pivotal.bench.cases import Case
from pivotal.bench.suites import (
    calls,
    cold_start,
    concurrency,
    edits,
    guided_step,
    kernels,
    methods,
    unet,
    whole,
)
from pivotal.bench.suites.plan import Plan


def _kernels(plan: Plan) -> Iterator[Case]:
    yield from kernels.cases(plan)
    yield from guided_step.cases(plan)


SUITES: Mapping[str, Callable[[Plan], Iterable[Case]]] = {
    kernels.SUITE: _kernels,
    unet.SUITE: unet.cases,
    methods.SUITE: methods.cases,
    edits.SUITE: edits.cases,
    whole.SUITE: whole.cases,
    concurrency.SUITE: concurrency.cases,
    calls.SUITE: calls.cases,
    cold_start.SUITE: cold_start.cases,
}


# What an engine does, which is compiled where that is asked; `unet` has cases of both kinds.
_BY_ENGINE = (methods.SUITE, edits.SUITE, whole.SUITE, concurrency.SUITE, calls.SUITE)


def cases_of(names: Sequence[str], plan: Plan) -> Iterator[Case]:
    """All cases of some suites, of every suite for none. Raises ValueError for an unknown name."""
    for name in names:
        if name not in SUITES:
            raise ValueError(f"suite {name!r} is unknown; accepted are {', '.join(SUITES)}")
    for name in names or SUITES:
        compiled = bool(plan.compile) and name in _BY_ENGINE
        yield from map(_compiled, SUITES[name](plan)) if compiled else SUITES[name](plan)


def _compiled(case: Case) -> Case:
    """Named as what it is: other work than the eager case's."""
    settings = {**case.settings, "compile": True}
    return replace(case, name=f"{case.name}, compiled", settings=settings)
