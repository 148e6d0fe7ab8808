"""Work on memory that several streams share, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StreamOrder:
    """Makes each turn's work on a device wait for the last turn's, whatever stream that was on.

    Threads have current streams of their own, and a lock orders no more than their enqueueing.
    Without a CUDA device work is done when it is asked, and there is nothing to order.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._last: torch.cuda.Event | None = None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Enqueue inside, on the current stream. Give turns to one thread at a time.

        Inside a graph's capture nothing is ordered: whoever replays the graph takes the turn.
        """
        if self.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            yield
            return
        stream = torch.cuda.current_stream(self.device)
        if self._last is not None:
            stream.wait_event(self._last)
        try:
            yield
        finally:
            self._last = stream.record_event()
