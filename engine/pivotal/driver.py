"""Connects algorithms, which ask, with a denoiser, which answers: one at a time or many in one UNet
batch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch

from .errors import BackendError, Cancelled
from .job import Job, Listener
from .query import Algorithm, Answer, Query, Result

__all__ = ["Denoiser", "Driver", "Job", "Listener", "drive", "drive_many", "require"]


class Denoiser(Protocol):
    """What every backend is to the driver. Thread safety is the backend's own business."""

    @property
    def name(self) -> str: ...

    @property
    def answers(self) -> frozenset[type]:
        """The query types it can answer, known before anything runs."""
        ...

    def answer(self, query: Query) -> Answer:
        """Row i of the answer belongs to row i of the query. May be a view of a static buffer."""
        ...


def require(denoiser: Denoiser, needed: Iterable[type], method: str) -> None:
    """Refuse, before anything runs, a method whose queries the denoiser can't answer.

    Raises BackendError.
    """
    missing = [query for query in needed if query not in denoiser.answers]
    if missing:
        names = ", ".join(query.__name__ for query in missing)
        raise BackendError(
            f"the {denoiser.name} backend can't answer {names}, which {method} needs; "
            "use the torch backend for it"
        )


class _Share(NamedTuple):
    """Some rows of a job's open question, on their way to a batch."""

    job: Job  # type: ignore[type-arg]
    rows: list[int]
    question: int

    @property
    def open(self) -> bool:
        job = self.job
        return not (job.done or job.cancelled) and job._asked == self.question

    def piece(self) -> Query:
        query = self.job._wanted
        assert query is not None
        if self.rows == list(range(query.rows)):
            return query
        return query.select(torch.tensor(self.rows))


class Driver:
    """Runs jobs together. Each `turn` answers the open question of every live job; jobs join
    between turns.

    max_rows: the most UNet rows in one batch; None for no limit. Rows tied by donors are never
    split.
    """

    def __init__(self, denoiser: Denoiser, *, max_rows: int | None = None) -> None:
        if max_rows is not None and max_rows < 1:
            raise ValueError(f"max_rows={max_rows}; at least 1 is needed")
        self.denoiser = denoiser
        self.max_rows = max_rows
        self.live: list[Job] = []  # type: ignore[type-arg]

    def add(self, job: Job[Result]) -> Job[Result]:
        """Start a job: it runs up to its first query."""
        self.live.append(job)
        with self._closing_all_on_interruption(), torch.no_grad():
            job._advance(lambda: next(job.algorithm))
        if job.done:
            self.live.remove(job)
        return job

    def turn(self) -> None:
        """Answer every open question once, in as few UNet batches as `max_rows` allows."""
        with self._closing_all_on_interruption(), torch.no_grad():
            for job in self.live:
                if job.cancelled:
                    job._close(Cancelled(f"{job.name} was cancelled"))
            self._answer_all()
        self.live = [job for job in self.live if not job.done]

    def run(self) -> None:
        """Turn until no job is live."""
        while self.live:
            self.turn()

    @contextmanager
    def _closing_all_on_interruption(self) -> Iterator[None]:
        try:
            yield
        except BaseException as interruption:
            for job in self.live:
                if not job.done:
                    job._close(interruption)
            raise

    def _answer_all(self) -> None:
        groups: dict[Hashable, list[Job]] = {}  # type: ignore[type-arg]
        for job in self.live:
            if job._wanted is not None:
                groups.setdefault(job._wanted.batch_key(), []).append(job)
        for jobs in groups.values():
            for batch in self._batches(jobs):
                self._answer(batch)

    def _batches(self, jobs: Sequence[Job]) -> list[list[_Share]]:  # type: ignore[type-arg]
        """Pack rows, tied ones together, into batches of at most `max_rows`."""
        batches: list[list[_Share]] = [[]]
        filled = 0
        for job in jobs:
            for tied in self._tied_rows(job):
                if self.max_rows is not None and filled + len(tied) > self.max_rows:
                    batches.append([])
                    filled = 0
                if batches[-1] and batches[-1][-1].job is job:
                    batches[-1][-1].rows.extend(tied)
                else:
                    batches[-1].append(_Share(job, list(tied), job._asked))
                filled += len(tied)
        return batches

    def _tied_rows(self, job: Job) -> list[list[int]]:  # type: ignore[type-arg]
        """Rows that need one batch, each group within `max_rows`, or the job's error."""
        query = job._wanted
        assert query is not None
        if self.max_rows is None:
            return [list(range(query.rows))]
        try:
            ties = query.ties()
            most = max(map(len, ties), default=0)
            if most > self.max_rows:
                raise ValueError(
                    f"{most} rows share attention and need one batch, but "
                    f"max_rows={self.max_rows}; raise it or edit fewer targets at once"
                )
        except Exception as error:
            job._fail(error)
            return []
        return ties

    def _answer(self, batch: list[_Share]) -> None:
        shares = [share for share in batch if share.open]
        if not shares:
            return
        answers: list[Answer] = []
        try:
            pieces = [share.piece() for share in shares]
            if len(pieces) == 1:
                answers.append(self.denoiser.answer(pieces[0]).owned())
            else:
                joined = self.denoiser.answer(type(pieces[0]).cat(pieces))  # type: ignore[arg-type]
                start = 0
                for piece in pieces:
                    answers.append(joined.select(torch.arange(start, start + piece.rows)))
                    start += piece.rows
        except Exception as error:
            if len(shares) == 1:
                shares[0].job._fail(error)
            else:  # whose fault it is shows when each is asked alone
                for share in shares:
                    self._answer([share])
            return
        for share, piece, answer in zip(shares, pieces, answers, strict=True):
            own = piece.without_company(answer)  # type: ignore[arg-type]
            share.job._parts.append((share.rows, own))
            share.job.rows_asked += len(share.rows)
            self._deliver(share.job)

    def _deliver(self, job: Job) -> None:  # type: ignore[type-arg]
        """Hand over the answer once all its rows are there, in the order they were asked."""
        order = [row for rows, _ in job._parts for row in rows]
        if len(order) < job._wanted.rows:  # type: ignore[union-attr]
            return
        answers = [answer for _, answer in job._parts]
        whole = answers[0] if len(answers) == 1 else type(answers[0]).cat(answers)  # type: ignore[arg-type]
        if order != sorted(order):
            whole = whole.select(torch.tensor(order).argsort())
        job._advance(lambda: job.algorithm.send(whole))


def drive(
    algorithm: Algorithm[Result],
    denoiser: Denoiser,
    *,
    name: str = "job",
    method: str = "",
    listener: Listener | None = None,
    max_rows: int | None = None,
) -> Result:
    """Run one algorithm to its end and return its result. Raises what it raises."""
    job = Job(algorithm, name, method, listener)
    driver = Driver(denoiser, max_rows=max_rows)
    driver.add(job)
    driver.run()
    return job.result()


def drive_many(
    algorithms: Sequence[Algorithm[Result] | Job[Result]],
    denoiser: Denoiser,
    *,
    max_rows: int | None = None,
) -> list[Job[Result]]:
    """Run many algorithms together, sharing UNet batches; one's error never reaches another.

    A `Job` brings its own name, method and listener.

    Returns the ended jobs in the order given; `job.result()` is the result or raises the job's
    error.
    """
    jobs = [
        each if isinstance(each, Job) else Job(each, f"job {index}")
        for index, each in enumerate(algorithms)
    ]
    driver = Driver(denoiser, max_rows=max_rows)
    for job in jobs:
        driver.add(job)
    driver.run()
    return jobs
