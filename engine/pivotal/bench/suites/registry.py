"""All suites by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

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


def cases_of(names: Sequence[str], plan: Plan) -> Iterator[Case]:
    """All cases of some suites, of every suite for none. Raises ValueError for an unknown name."""
    for name in names:
        if name not in SUITES:
            raise ValueError(f"suite {name!r} is unknown; accepted are {', '.join(SUITES)}")
    for name in names or SUITES:
        yield from SUITES[name](plan)
