"""Connects algorithms, which ask, with a denoiser, which answers: one at a time or many in one UNet
batch.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from traceback import clear_frames
from typing import Protocol

import torch

from .errors import BackendError
from .job import Job, Listener
from .query import Algorithm, Answer, Query, Result
from .runtime.out_of_memory import is_out_of_memory, named
from .shares import Share, halves, rows_of

__all__ = [
    "Denoiser",
    "Driver",
    "Job",
    "Listener",
    "drive",
    "drive_many",
    "require",
    "require_rows",
]

logger = logging.getLogger(__name__)


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


def require_rows(name: str, rows: int | None) -> None:
    """Raises ValueError for a limit that no batch fits into."""
    if rows is not None and rows < 1:
        raise ValueError(f"{name}={rows}; at least 1 is needed")


class Driver:
    """Runs jobs together, a UNet batch each `turn`; jobs join and leave between turns.

    Who goes first: the highest priority. A job counts one higher for every `PATIENCE` batches that
    have passed it over, so none waits for ever. Among equals newcomers come first, then whoever
    has waited longest. What fits beside the first shares its batch.

    max_rows: the most UNet rows in one batch; None for no limit. A job's own `max_rows` bounds
    the batches that it is in. Rows tied by donors are never split. shared_rows: the most rows in a
    batch that several jobs share; one job's own may be more.
    """

    PATIENCE = 4

    def __init__(
        self, denoiser: Denoiser, *, max_rows: int | None = None, shared_rows: int | None = None
    ) -> None:
        require_rows("max_rows", max_rows)
        require_rows("shared_rows", shared_rows)
        self.denoiser = denoiser
        self.max_rows = max_rows
        self.shared_rows = shared_rows
        self.live: list[Job] = []  # type: ignore[type-arg]  # who was answered last comes last

    def add(self, job: Job[Result]) -> Job[Result]:
        """Start a job: it runs up to its first query."""
        self.live.append(job)
        try:
            with self._closing_all_on_interruption(), torch.no_grad():
                job._advance(lambda: next(job.algorithm))
        finally:
            if job.done:
                self.live.remove(job)
        return job

    def turn(self) -> None:
        """Answer one UNet batch: of the job that comes first, and of those that fit beside it."""
        batch: list[Share] = []
        try:
            with self._closing_all_on_interruption(), torch.no_grad():
                for job in self.live:
                    if job.cancelled:
                        job._close(job.ending())
                batch = self._next_batch()
                self._answer(batch)
        finally:
            answered = [share.job for share in batch if not share.open]
            waiting = [job for job in self.live if job not in answered]
            self.live = [job for job in (*waiting, *answered) if not job.done]

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

    def _next_batch(self) -> list[Share]:
        """Rows of one kind of query, those of the job that comes first before all others."""
        waiting = [job for job in self.live if job._wanted is not None]
        waiting.sort(key=lambda job: (-job.priority - job._passed // self.PATIENCE, job._asked > 1))
        batch: list[Share] = []
        kind: Hashable = None
        filled, most = 0, self.max_rows or sys.maxsize
        for job in waiting:
            assert job._wanted is not None
            job._passed += 1
            if batch and job._wanted.batch_key() != kind:
                continue
            own = min(most, job.max_rows or sys.maxsize, job._fitted)
            shared = min(own, self.shared_rows or sys.maxsize) if batch else own
            rows = self._rows_within(job, shared - filled, first=not batch)
            if rows is not None:
                kind, filled, most = job._wanted.batch_key(), filled + len(rows), own
                batch.append(Share(job, rows, job._asked))
                job._passed = 0
        return batch

    def _rows_within(
        self,
        job: Job,  # type: ignore[type-arg]
        room: int,
        *,
        first: bool,
    ) -> list[int] | None:
        """As many of a job's open rows as there is room for, tied ones together, or None.

        Ties that no batch can hold are the job's error; those that may not fit into memory are
        tried by the first of a batch.
        """
        query = job._wanted
        assert query is not None
        answered = {row for rows, _ in job._parts for row in rows}
        if query.rows - len(answered) <= room:
            return [row for row in range(query.rows) if row not in answered]
        limit = min(self.max_rows or sys.maxsize, job.max_rows or sys.maxsize)
        try:
            ties = query.ties()
            largest = max(map(len, ties), default=0)
            if largest > limit:
                raise ValueError(
                    f"{largest} rows share attention and need one batch, but "
                    f"max_rows={limit}; raise it or edit fewer targets at once"
                )
        except Exception as error:
            job._fail(error)
            return None
        taken: list[int] = []
        for tied in ties:
            if tied[0] in answered:
                continue
            if len(taken) + len(tied) > room and (taken or not first):
                break
            taken.extend(tied)
        return taken or None

    def _answer(self, batch: list[Share]) -> None:
        shares = [share for share in batch if share.open]
        if not shares:
            return
        try:
            pieces = [share.piece() for share in shares]
            answers = self._answers(pieces)
        except Exception as error:
            failure = error
        else:
            self._hand_over(shares, pieces, answers)
            return
        full = is_out_of_memory(failure)
        if full:
            clear_frames(failure.__traceback__)  # they hold what the batch had allocated
        if len(shares) > 1 and not full:
            smaller = [[share] for share in shares]  # whose fault it is shows when each is alone
        elif full and (parts := halves(shares)):
            logger.warning("out of memory with %d rows: trying half", rows_of(shares))
            smaller = parts
            for share in shares:  # nor ask for as many again
                share.job._fitted = min(share.job._fitted, max(map(rows_of, parts)))
        else:
            shares[0].job._fail(named(failure, rows_of(shares)))
            return
        for part in smaller:
            self._answer(part)

    def _answers(self, pieces: Sequence[Query]) -> list[Answer]:
        """One batch of pieces, answered piece by piece."""
        if len(pieces) == 1:
            return [self.denoiser.answer(pieces[0]).owned()]
        joined = self.denoiser.answer(type(pieces[0]).cat(pieces))  # type: ignore[arg-type]
        answers: list[Answer] = []
        start = 0
        for piece in pieces:
            answers.append(joined.part(start, start + piece.rows).owned())
            start += piece.rows
        return answers

    def _hand_over(
        self, shares: Sequence[Share], pieces: Sequence[Query], answers: Sequence[Answer]
    ) -> None:
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
        whole = whole.taken(torch.tensor(order).argsort().tolist())
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
