"""Between a command and the shell: every end is an exit code and at most one sentence."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

WRONG = 2  # the input, or what only the run could find out
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
UNREAD = 141  # 128 + SIGPIPE: nobody reads our output

_MEMORY_ADVICE = "use a smaller --size, fewer images or targets at once, or --dtype float16"


class Interruption:
    """Ctrl-C, remembered: a library that swallows KeyboardInterrupt must not swallow the wish.

    Also SIGTERM and SIGHUP, whose default would leave temporary files behind.
    """

    def __init__(self) -> None:
        self.asked = False
        self.ended: int | None = None  # 128 + the signal that ended the process
        self._held = 0

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGINT."""
        self.asked = True
        if not self._held:
            raise KeyboardInterrupt

    def end(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGTERM and SIGHUP."""
        self.ended = 128 + number
        if not self._held:
            raise SystemExit(self.ended)

    @contextmanager
    def held(self) -> Iterator[None]:
        """For moments that must not be torn apart: Ctrl-C is only noted."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed, SystemExit if the end was asked for."""
        if self.ended is not None:
            raise SystemExit(self.ended)
        if self.asked:
            raise KeyboardInterrupt


Run = Callable[[Sequence[str], Interruption], int]


def guarded(run: Run, arguments: Sequence[str] | None) -> NoReturn:
    """Exit with the code that `run` returns, or with that of what it raised, said in a sentence.

    arguments: the process's own if None; then the process ends with this call, and a Ctrl-C while
    the interpreter tidies up is ignored.
    """
    own = arguments is None
    interruption = Interruption()
    with _minding(interruption, own):
        try:
            with _warnings_as_sentences():
                code = run(sys.argv[1:] if arguments is None else list(arguments), interruption)
            interruption.check()  # typer makes an exit code of what it sees
            _flush(sys.stdout)
        except BaseException as error:
            code = _code(error, interruption)
        if own:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _code(error: BaseException, interruption: Interruption) -> int:
    """The exit code of an error, after its sentence on stderr. Raises what is a defect of ours."""
    if interruption.ended is not None:
        return interruption.ended
    if interruption.asked or isinstance(error, KeyboardInterrupt):
        _say("interrupted")
        return INTERRUPTED
    if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
        # The second is typer's: it makes an exit of what it sees.
        sink = os.open(os.devnull, os.O_WRONLY)
        with suppress(OSError, ValueError):  # a stdout without a descriptor has nothing to flush
            os.dup2(sink, sys.stdout.fileno())
        return UNREAD
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else WRONG
    sentence = _sentence(error)
    if sentence is None:
        raise error
    if sentence:
        _say(sentence)
    return WRONG


def _sentence(error: BaseException) -> str | None:
    """What to tell a person; nothing where help was shown; None for a defect of ours."""
    from typer import TyperException

    from pivotal.errors import PivotalError

    if isinstance(error, TyperException):
        return _usage(error)
    if isinstance(error, MemoryError):
        return f"there is not enough memory; {_MEMORY_ADVICE}"
    if isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    ):  # torch's; torch is not imported for --help
        return f"{str(error).partition(chr(10))[0].rstrip('.')}; {_MEMORY_ADVICE}"
    if isinstance(error, OSError) and error.strerror:
        place = "the output" if error.filename is None else repr(str(error.filename))
        return f"{place} can't be read or written: {error.strerror}"
    if isinstance(error, ValueError | PivotalError | OSError):
        return " ".join(str(error).split())
    return None


def _usage(error: Any) -> str:
    """A wrong option, and where to read about the right ones."""
    message = " ".join(error.format_message().split()).rstrip(".")
    message = message[:1].lower() + message[1:]
    if not message:
        return ""  # no arguments: the help was shown
    reasons = getattr(error.__cause__, "errors", None)  # pydantic's, which typer leaves out
    if reasons is not None:
        message += f", not {reasons()[0]['input']!r}"
    context = getattr(error, "ctx", None)
    return f"{message}; see `{context.command_path} --help`" if context else message


def _say(sentence: str) -> None:
    with suppress(OSError, ValueError):  # a stderr that is closed or full: the exit code remains
        sys.stderr.write(f"pivotal: {sentence}\n")
        sys.stderr.flush()


def _flush(stream: Any) -> None:
    """A full disk or a closed pipe is found here, not while the interpreter shuts down."""
    if stream is not None:
        stream.flush()


@contextmanager
def _minding(interruption: Interruption, own: bool) -> Iterator[None]:
    """Let Ctrl-C reach `interruption`, in the main thread; SIGTERM and SIGHUP too, where nobody
    else minds them. What the process was started to ignore stays ignored.
    """
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, unraisable = signal.getsignal(signal.SIGINT), sys.unraisablehook

    def unless_interrupted(lost: Any) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):  # lost in a destructor; it is noted
            unraisable(lost)

    ends = [
        number
        for name in ("SIGTERM", "SIGHUP")
        if (number := getattr(signal, name, None)) is not None  # Windows has no SIGHUP
        and signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in ends:
        signal.signal(number, interruption.end)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interruption.interrupt)
    sys.unraisablehook = unless_interrupted
    try:
        yield
    finally:
        for number in ends:
            signal.signal(number, signal.SIG_DFL)
        if not own:
            signal.signal(signal.SIGINT, before)
            sys.unraisablehook = unraisable


@contextmanager
def _warnings_as_sentences() -> Iterator[None]:
    """What the package logs, from warnings on, goes to stderr as `pivotal: sentence`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("pivotal: %(message)s"))
    logger = logging.getLogger("pivotal")
    logger.addHandler(handler)
    propagated, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
