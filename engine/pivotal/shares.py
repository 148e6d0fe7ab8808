"""Rows of several jobs on their way to one batch, and a batch as two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .job import Job
from .query import Query


class Share(NamedTuple):
    """Some rows of a job's open question."""

    job: Job  # type: ignore[type-arg]
    rows: list[int]
    question: int

    @property
    def open(self) -> bool:
        job = self.job
        return not (job.done or job.cancelled) and job._asked == self.question

    def piece(self) -> Query:
        query = self._query()
        if self.rows == list(range(query.rows)):
            return query
        return query.taken(self.rows)

    def tied(self) -> list[list[int]]:
        """Its rows in groups that need one batch."""
        own = set(self.rows)
        return [group for group in self._query().ties() if group[0] in own]

    def _query(self) -> Query:
        query = self.job._wanted
        assert query is not None
        return query


def rows_of(shares: Sequence[Share]) -> int:
    return sum(len(share.rows) for share in shares)


def halves(shares: Sequence[Share]) -> list[list[Share]]:
    """A batch as two of about half the rows, tied ones together; none if it can't be."""
    groups = [(share, tied) for share in shares for tied in share.tied()]
    if len(groups) < 2:
        return []
    half, first, filled = rows_of(shares) / 2, 1, len(groups[0][1])
    while first < len(groups) - 1 and filled < half:
        filled += len(groups[first][1])
        first += 1
    return [_joined(groups[:first]), _joined(groups[first:])]


def _joined(groups: Sequence[tuple[Share, list[int]]]) -> list[Share]:
    """Groups of tied rows as shares, one a job."""
    shares: list[Share] = []
    for share, tied in groups:
        if shares and shares[-1].job is share.job:
            shares[-1].rows.extend(tied)
        else:
            shares.append(share._replace(rows=list(tied)))
    return shares
