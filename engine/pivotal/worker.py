"""One thread that runs the jobs of all submitted calls together, in shared UNet batches."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .driver import Denoiser, Driver, Job
from .errors import EngineClosedError, WorkerError
from .turns import Turns

logger = logging.getLogger(__name__)


class _SharedDriver(Driver):
    """Nobody presses Ctrl-C in a worker: what a job raises, whatever it is, is its own end."""

    @contextmanager
    def _closing_all_on_interruption(self) -> Iterator[None]:
        yield


class _Party:
    """Jobs that joined together, and whether all of them have ended."""

    def __init__(self, jobs: Sequence[Job[Any]]) -> None:
        self.jobs = jobs
        self.ended = threading.Event()


class Worker:
    """Turns a driver that the jobs of many threads share. Jobs join and leave between two batches.

    The thread begins with the first job and lasts until `stop`. Each batch is a turn among those
    of the engine's direct calls; between two of the worker's at most one other is taken.
    """

    def __init__(self, denoiser: Denoiser, turns: Turns, shared_rows: int) -> None:
        self._driver = _SharedDriver(denoiser, shared_rows=shared_rows)
        self._turns = turns
        self._changed = threading.Condition()
        self._joining: list[_Party] = []
        self._running: list[_Party] = []
        self._thread: threading.Thread | None = None
        self._stopped = False

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def waits_here(self) -> bool:
        """Whether the worker waits for the calling thread, which must not wait for it: it is the
        worker's own, or has the turn, as a direct call's callbacks do.
        """
        return self._thread is threading.current_thread() or self._turns.held

    def run(self, jobs: Sequence[Job[Any]]) -> None:
        """Run jobs to their ends beside all others; each keeps its result or its error.

        Waits for them. Raises EngineClosedError once the worker was stopped.
        """
        party = _Party(jobs)
        with self._changed:
            if self._stopped:
                raise EngineClosedError("the engine was closed; load another one")
            if not self.alive:
                self._thread = threading.Thread(
                    target=self._work, name="pivotal-worker", daemon=True
                )
                self._thread.start()
            self._joining.append(party)
            self._changed.notify()
        party.ended.wait()

    def stop(self, *, wait: bool = True) -> None:
        """End the thread once no job is live; whoever stops it cancels them before."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if wait and self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            while self._await_work():
                with self._turns.take(every_other=True):
                    self._turn()
                self._tell_the_ended()
        except BaseException as cause:
            logger.exception("the worker ended unexpectedly")
            self._break(cause)

    def _await_work(self) -> bool:
        with self._changed:
            while not (self._joining or self._running or self._stopped):
                self._changed.wait()
            return bool(self._joining or self._running)

    def _turn(self) -> None:
        """Let newcomers in, then answer one batch."""
        with self._changed:
            joining, self._joining = self._joining, []
            self._running += joining
        for party in joining:
            for job in party.jobs:
                with self._a_jobs_end_contained():
                    self._driver.add(job)
        if self._driver.live:
            with self._a_jobs_end_contained():
                self._driver.turn()

    @contextmanager
    def _a_jobs_end_contained(self) -> Iterator[None]:
        """A listener's SystemExit has ended its job, and only that."""
        try:
            yield
        except BaseException as error:
            if not any(job.error is error for party in self._running for job in party.jobs):
                raise

    def _tell_the_ended(self) -> None:
        for party in self._running:
            if all(job.done for job in party.jobs):
                party.ended.set()
        self._running = [party for party in self._running if not party.ended.is_set()]

    def _break(self, cause: BaseException) -> None:
        """Fail every job with what ended the thread; the next job starts another."""
        with self._changed:
            parties = [*self._running, *self._joining]
            self._running, self._joining, self._thread = [], [], None
            self._driver.live = []
        for party in parties:
            for job in party.jobs:
                if not job.done:
                    error = WorkerError(
                        f"{job.name} was lost: the worker ended by {type(cause).__name__}: {cause}"
                    )
                    error.__cause__ = cause
                    job._close(error)
            party.ended.set()
