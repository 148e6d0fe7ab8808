"""Calls of an engine submitted from any thread: a future each, one worker for all."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from inspect import signature
from typing import Any, TypeVar

from .cancellation import Cancellation
from .driver import Job
from .errors import Cancelled, DeadlineExceeded, EngineClosedError, QueueFullError
from .query import Progress
from .worker import Worker

T = TypeVar("T")


@dataclass(frozen=True)
class Serving:
    """How an engine serves submitted calls.

    shared_rows: the most UNet rows in a batch that several calls share, which is what takes
    memory; 1 keeps calls apart, so that each gives the same bits whatever runs beside it. A call's
    own `max_rows`, which inversions have (8 if not given), bounds the batches that it is in too.
    max_requests: how many calls may be in progress at once; one more is refused.
    """

    shared_rows: int = 16
    max_requests: int = 64

    def __post_init__(self) -> None:
        for name in ("shared_rows", "max_requests"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}; an integer from 1 is expected")


class Submitted(Future[T]):
    """A submitted call. A `concurrent.futures.Future` that can be awaited, and cancelled while it
    runs.

    `result` and `exception` raise and return what the call raised: Cancelled after `cancel`,
    DeadlineExceeded after its deadline.
    """

    def __init__(self, worker: Worker, priority: int, deadline: float | None) -> None:
        super().__init__()
        self.priority = priority
        self.cancellation = Cancellation(deadline=deadline)
        self.jobs: Sequence[Job[Any]] = ()  # those that run now, or ran last
        self._worker = worker
        self.set_running_or_notify_cancel()

    def cancel(self) -> bool:
        """Ask for the end, which comes within one query to the network. False if it has ended."""
        if self.done():
            return False
        self.cancellation.cancel()
        return True

    def cancelled(self) -> bool:
        """Whether it has ended because it was cancelled."""
        error = self.exception() if self.done() else None
        return isinstance(error, Cancelled) and not isinstance(error, DeadlineExceeded)

    def result(self, timeout: float | None = None) -> T:
        self._require_elsewhere()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._require_elsewhere()
        return super().exception(timeout)

    @property
    def progress(self) -> Progress | None:
        """How far it is: of several images, the first that is not done. None before its first
        step.
        """
        jobs = self.jobs
        going = next((job for job in jobs if not job.done), jobs[-1] if jobs else None)
        return None if going is None else going.progress

    def __await__(self) -> Generator[Any, None, T]:
        """In asyncio: `await engine.submit(..)`. Cancelling what awaits it cancels the call."""
        return asyncio.wrap_future(self).__await__()

    def _require_elsewhere(self) -> None:
        if not self.done() and self._worker.waits_here:
            raise RuntimeError(
                "a callback can't wait for a submitted call, which waits for the callback; call "
                "the engine directly"
            )


class Service:
    """Runs each submitted call in a thread of its own, and the jobs of all in one worker."""

    def __init__(self, worker: Worker, settings: Serving) -> None:
        self._worker = worker
        self._settings = settings
        self._changed = threading.RLock()  # a collected engine closes, in whatever thread
        self._requests: dict[Submitted[Any], threading.Thread] = {}
        self._here = threading.local()
        self._closed = False
        self._process = os.getpid()

    def submit(
        self,
        call: Callable[..., T],
        arguments: Sequence[Any],
        options: dict[str, Any],
        priority: int,
        deadline: float | None,
    ) -> Submitted[T]:
        """Start a call. Raises TypeError for arguments that it does not take, ValueError for a
        wrong priority or deadline, QueueFullError and EngineClosedError.
        """
        signature(call).bind(*arguments, **options)
        if not isinstance(priority, int):
            raise ValueError(f"priority={priority!r}; an integer is expected")
        request: Submitted[T] = Submitted(self._worker, priority, deadline)
        if self._process != os.getpid():
            raise EngineClosedError("the engine serves another process; load one in this process")
        with self._changed:
            if self._closed:
                raise EngineClosedError("the engine was closed; load another one")
            most = self._settings.max_requests
            if len(self._requests) >= most:
                raise QueueFullError(
                    f"{most} calls are in progress and max_requests={most}; submit again when one "
                    "has ended"
                )
            thread = threading.Thread(
                target=self._serve,
                args=(request, call, arguments, options),
                name="pivotal-request",
                daemon=True,  # or a call would outlive Ctrl-C; `close` waits for it at exit
            )
            if not self._requests:
                atexit.unregister(self.close)
                atexit.register(self.close)
            thread.start()
            self._requests[request] = thread
        return request

    @property
    def busy(self) -> bool:
        """Whether submitted calls are in progress."""
        return bool(self._requests)

    def request(self) -> Submitted[Any] | None:
        """The submitted call that the calling thread runs; None in any other thread."""
        request: Submitted[Any] | None = getattr(self._here, "request", None)
        return request

    def run(self, jobs: Sequence[Job[Any]], request: Submitted[Any]) -> None:
        """Run jobs of a submitted call to their ends in the worker."""
        for job in jobs:
            job.priority = request.priority
        self._worker.run(jobs)

    def close(self, *, wait: bool = True) -> None:
        """Cancel all calls and end the worker. Calls from here on are refused."""
        with self._changed:
            self._closed = True
            threads = list(self._requests.values())
            for request in self._requests:
                request.cancel()
        wait = wait and not self._worker.waits_here
        for thread in threads:
            if wait and thread is not threading.current_thread():
                thread.join()
        self._worker.stop(wait=wait)
        atexit.unregister(self.close)

    def _serve(
        self,
        request: Submitted[T],
        call: Callable[..., T],
        arguments: Sequence[Any],
        options: dict[str, Any],
    ) -> None:
        self._here.request = request
        try:
            request.cancellation.check("the submitted call")
            result = call(*arguments, **options)
        except BaseException as error:  # the caller's now, whatever it is
            self._leave(request)
            request.set_exception(error)
        else:
            self._leave(request)
            request.set_result(result)
        finally:
            del request, call, arguments, options  # or an error's traceback would keep them

    def _leave(self, request: Submitted[Any]) -> None:
        """Make room before the caller hears of the end. What its callbacks then call in this thread
        is no part of it.
        """
        self._here.request = None
        with self._changed:
            del self._requests[request]
