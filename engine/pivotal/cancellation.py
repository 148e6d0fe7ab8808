"""A way to end a long call from outside it."""

from __future__ import annotations

import threading

from .errors import Cancelled


class Cancellation:
    """Given to one or several long calls; `cancel` ends them within one query to the network.

    Any thread may cancel, also before the call. A call ended so raises `Cancelled`.
    """

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask for the end. Asking twice is asking once."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        return self._event.is_set()

    def check(self, what: str = "the call") -> None:
        """Raise Cancelled if the end was asked for."""
        if self.cancelled:
            raise Cancelled(f"{what} was cancelled")
