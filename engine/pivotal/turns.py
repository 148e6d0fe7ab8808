"""Whose turn it is: a lock for steps of work, fair to those that wait."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from .cancellation import Cancellation

_PATIENCE = 0.02  # seconds between a waiting thread's looks at its cancellation


class Turns:
    """Threads take turns, first come, first served: of two long calls neither waits for all of the
    other. A thread that has its turn may take it again inside (a callback that calls the engine).
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._owner: int | None = None  # the thread whose turn it is
        self._process = os.getpid()

    @property
    def held(self) -> bool:
        """Whether it is the calling thread's turn."""
        return self._owner == threading.get_ident() and self._process == os.getpid()

    @contextmanager
    def take(
        self, cancellation: Cancellation | None = None, *, every_other: bool = False
    ) -> Iterator[None]:
        """Wait for a turn and hold it. Raises Cancelled if the end is asked for meanwhile.

        every_other: wait for one of those that came before, not for all: for the thread that many
        calls wait for.
        """
        if self._process != os.getpid():  # forked: whoever held or awaited a turn is not here
            Turns.__init__(self)
        thread = threading.get_ident()
        if self._owner == thread:
            yield
            return
        ticket = object()
        try:  # an interruption may come at any point from here on
            with self._changed:
                self._waiting.insert(1 if every_other else len(self._waiting), ticket)
                while self._owner is not None or self._waiting[0] is not ticket:
                    self._changed.wait(None if cancellation is None else _PATIENCE)
                    if cancellation is not None:
                        cancellation.check()
                self._owner = thread
                self._waiting.popleft()
            if cancellation is not None:
                cancellation.check()
            yield
        finally:
            with self._changed:
                if ticket in self._waiting:
                    self._waiting.remove(ticket)
                if self._owner == thread:
                    self._owner = None
                self._changed.notify_all()
