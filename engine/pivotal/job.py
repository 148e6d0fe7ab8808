"""One algorithm on its way through a driver."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic

from .cancellation import Cancellation
from .errors import Cancelled
from .query import Algorithm, Answer, Progress, Query, Result

Listener = Callable[[Progress], None]


@dataclass(eq=False)
class Job(Generic[Result]):
    """One algorithm on its way: its open question, how far it is, and how it ended.

    priority: jobs of a higher one go first. max_rows: the most rows in a batch that it is in.
    """

    algorithm: Algorithm[Result]
    name: str = "job"
    method: str = ""
    listener: Listener | None = None
    cancellation: Cancellation | None = None
    priority: int = 0
    max_rows: int | None = None
    rows_asked: int = 0  # UNet rows answered so far
    progress: Progress | None = None
    done: bool = False
    error: BaseException | None = None
    _value: Result | None = None
    _wanted: Query | None = None
    _asked: int = 0  # questions so far; tells a question from a second one that is the same object
    _passed: int = 0  # batches since its last that went without it
    _fitted: int = sys.maxsize  # the rows that memory had room for, after it had none for more
    _own: Cancellation = field(default_factory=Cancellation)
    _parts: list[tuple[list[int], Answer]] = field(default_factory=list)

    def cancel(self) -> None:
        """Ask for the end. The generator is closed before its next query is answered.

        Any thread may call.
        """
        self._own.cancel()

    @property
    def cancelled(self) -> bool:
        """Asked to end, by `cancel` or by the cancellation that it shares with others."""
        shared = self.cancellation is not None and self.cancellation.cancelled
        return shared or self._own.cancelled

    def ending(self) -> Cancelled:
        """What to close a cancelled job with."""
        shared = self.cancellation
        return (self._own if shared is None or not shared.cancelled else shared).error(self.name)

    def result(self) -> Result:
        """What the algorithm returned. Raises its error, or Cancelled."""
        if self.error is not None:
            raise self.error
        if not self.done:
            raise RuntimeError(f"{self.name} has not ended")
        return self._value  # type: ignore[return-value]

    def _advance(self, step: Callable[[], Query | Progress]) -> None:
        """Run the generator up to its next query; progress notices are passed on along the way."""
        try:
            asked = step()
            while isinstance(asked, Progress):
                self._tell(asked)
                asked = next(self.algorithm)
            if not isinstance(asked, Query):
                raise TypeError(f"{self.name} yielded {type(asked).__name__}, which is not a query")
            self._wanted, self._parts = asked, []
            self._asked += 1
        except StopIteration as stop:
            self.done, self._value, self._wanted = True, stop.value, None
        except BaseException as error:
            self._close(error)
            if not isinstance(error, Exception):
                raise

    def _tell(self, progress: Progress) -> None:
        self.progress = progress
        if self.listener is None:
            return
        try:
            self.listener(progress)
        except StopIteration as stop:  # which would be taken for the algorithm's end
            raise RuntimeError(f"the listener of {self.name} raised StopIteration") from stop

    def _fail(self, error: Exception) -> None:
        """Throw a backend's error into the generator that asked, saying where it happened."""
        wanted = self._wanted
        where = (
            "" if self.progress is None else f" at {self.progress.phase} step {self.progress.step}"
        )
        error.add_note(
            f"while answering {type(wanted).__name__} with {0 if wanted is None else wanted.rows} "
            f"rows for {self.name}{f' ({self.method})' if self.method else ''}{where}"
        )
        self._advance(lambda: self.algorithm.throw(error))

    def _close(self, error: BaseException) -> None:
        """End the generator; what its clean-up raises stays with this job."""
        try:
            self.algorithm.close()
        except Exception as failure:
            error.add_note(f"and while closing {self.name}: {failure!r}")
        self.done, self.error, self._wanted = True, error, None
