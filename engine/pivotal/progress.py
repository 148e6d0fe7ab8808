"""A progress bar on stderr, with the time left, fed by an algorithm's own notices."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from .query import Progress

_TITLES = {
    "invert": "inverting",
    "fit": "fitting null embeddings",
    "sample": "sampling",
    "decode": "drawing the frames",
}


class ProgressBar:
    """One line for each phase of the work. Call it with each notice; use it as a context.

    check: called with each notice as well; what it raises ends the work.
    """

    def __init__(
        self,
        console: Console,
        *,
        quiet: bool = False,
        prefix: str = "",
        check: Callable[[], None] | None = None,
    ) -> None:
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet,
        )
        self._prefix = prefix
        self._check = check
        self._phase: str | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._complete()
        if self._task is not None:
            self._bar.stop()

    def __call__(self, notice: Progress) -> None:
        if self._check is not None:
            self._check()
        if self._task is None:
            self._bar.start()  # only now: work that fails before its first step shows no bar
        if notice.phase != self._phase or notice.step == 0:
            self._complete()
            title = self._prefix + _TITLES.get(notice.phase, notice.phase)
            self._phase = notice.phase
            self._task = self._bar.add_task(title, total=notice.steps)
        if self._task is not None:
            self._bar.update(self._task, completed=notice.step)

    def _complete(self) -> None:
        if self._task is not None:
            task = self._bar.tasks[self._bar.task_ids.index(self._task)]
            self._bar.update(self._task, completed=task.total)
