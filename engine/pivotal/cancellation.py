"""A way to end a long call from outside it."""

from __future__ import annotations

import math
import threading
import time

from .errors import Cancelled, DeadlineExceeded


class Cancellation:
    """Given to one or several long calls; `cancel` ends them within one query to the network.

    Any thread may cancel, also before the call. A call ended so raises `Cancelled`.

    deadline: seconds from now after which the calls are ended too, by `DeadlineExceeded`. Raises
    ValueError for one that is no positive number.
    """

    def __init__(self, *, deadline: float | None = None) -> None:
        if deadline is not None and not deadline > 0:
            raise ValueError(f"deadline={deadline}; a positive number of seconds is expected")
        self._event = threading.Event()
        self._seconds = math.inf if deadline is None else deadline
        self._end = time.monotonic() + self._seconds

    def cancel(self) -> None:
        """Ask for the end. Asking twice is asking once."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """The end was asked for, or the deadline has passed."""
        return self._event.is_set() or time.monotonic() >= self._end

    def error(self, what: str) -> Cancelled:
        """What a call ended by this raises."""
        if self._event.is_set():
            return Cancelled(f"{what} was cancelled")
        return DeadlineExceeded(f"{what} had not ended by its deadline of {self._seconds:g} s")

    def check(self, what: str = "the call") -> None:
        """Raise Cancelled if the end was asked for, DeadlineExceeded if it is too late."""
        if self.cancelled:
            raise self.error(what)


class EitherCancellation(Cancellation):
    """Cancelled when one of several is."""

    def __init__(self, *several: Cancellation) -> None:
        super().__init__()
        self._several = several

    @property
    def cancelled(self) -> bool:
        return super().cancelled or any(each.cancelled for each in self._several)

    def error(self, what: str) -> Cancelled:
        asked = next((each for each in self._several if each.cancelled), None)
        return super().error(what) if asked is None else asked.error(what)
