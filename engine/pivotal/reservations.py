"""What submitted calls hold of the memory at the same time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from .errors import MemoryLimitError
from .job import Job
from .runtime.memory_plan import MemoryPlan, said
from .serving import Submitted


class Reservations:
    """The plans of submitted calls in progress, which share a limit.

    Their UNet batches take turns, so that the largest counts; what they keep between the steps
    adds up, and one may encode or decode a picture beside another's batch.
    """

    def __init__(self) -> None:
        self._plans: WeakKeyDictionary[Submitted[Any], MemoryPlan] = WeakKeyDictionary()
        self._alone = threading.Lock()

    def rows(self, plan: MemoryPlan, request: Submitted[Any] | None) -> int:
        """The rows that a job may ask at once beside all others, which from now on ask no more than
        fit beside it.

        request: the submitted call that it is part of; a direct one (None) is planned alone. Raises
        MemoryLimitError for a job that does not fit, or not at the moment.
        """
        rows = plan.require()
        if request is None or plan.limit is None:
            return rows
        with self._alone:
            plans = {each: kept for each, kept in self._plans.items() if not each.done()}
            plans.pop(request, None)
            if plans:
                room = _room([plan, *plans.values()])
                if any(each.batch.within(room) < each.least for each in (plan, *plans.values())):
                    raise MemoryLimitError(
                        f"{plan.job} does not fit into {said(plan.limit)} beside {len(plans)} "
                        f"call{'s' * (len(plans) != 1)} in progress; submit it again later"
                    )
                rows = min(rows, plan.batch.within(room))
                for other, kept in plans.items():
                    _bound(other.jobs, kept.batch.within(room))
            self._plans[request] = plan
        return rows

    def begin(self, jobs: Sequence[Job[Any]], request: Submitted[Any]) -> None:
        """From now on a submitted call runs these jobs, within what those that were planned since
        it was have left it.
        """
        with self._alone:
            request.jobs = jobs
            plans = {each: kept for each, kept in self._plans.items() if not each.done()}
            if request in plans and len(plans) > 1:
                _bound(jobs, plans[request].batch.within(_room(plans.values())))


def _bound(jobs: Iterable[Job[Any]], rows: int) -> None:
    for job in jobs:
        job.max_rows = min(job.max_rows or sys.maxsize, rows)


def _room(plans: Collection[MemoryPlan]) -> int:
    """Bytes for a UNet batch, whosever it is."""
    limit, weights = min((each.limit or 0, each.weights) for each in plans)
    kept = sum(each.state for each in plans)
    return limit - weights - kept - max(each.autoencoder for each in plans)
