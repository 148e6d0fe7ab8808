"""Some steps of a run, looked at through a context that is entered around them alone."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from pivotal.query import Progress


class Window:
    """A listener that enters a context before step `first` of a phase and leaves it after `last`.

    Steps count from 0, the first that the phase runs.
    """

    def __init__(
        self, phase: str, first: int, last: int, inside: AbstractContextManager[Any]
    ) -> None:
        self._phase, self._first, self._last, self._inside = phase, first, last, inside
        self.entered = self.left = False

    def __call__(self, notice: Progress) -> None:
        if notice.phase != self._phase:
            return
        if not self.entered and notice.step >= self._first:
            self._inside.__enter__()
            self.entered = True
        elif self.entered and not self.left and notice.step > self._last:
            self._inside.__exit__(None, None, None)
            self.left = True

    def close(self) -> None:
        """Where the work ended before the last step's notice. Raises ValueError for steps that
        never came.
        """
        if not self.entered:
            raise ValueError(
                f"steps {self._first} to {self._last} of phase {self._phase!r} never came; name "
                "earlier steps or another phase"
            )
        if not self.left:
            self._inside.__exit__(None, None, None)
            self.left = True
