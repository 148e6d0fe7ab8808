"""What every fuzzed input must do: be served, or be refused in one sentence, soon, and no more."""

import contextlib
import os
import signal
import time
import warnings
from collections import Counter

import pytest

from pivotal.errors import PivotalError

SECONDS = 20  # a slow machine's patience; a case takes milliseconds
TALLY = Counter()  # (class of inputs, what became of it) to count, for the summary


class Outcomes:
    """Counts of one class of inputs."""

    def __init__(self, kind):
        self.kind = kind

    def of(self, call, *names):
        """The call's result, or the sentence of its refusal, which holds one of `names`.

        Any other exception is a defect and passes through.
        """
        result, sentence = None, None
        with limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about damage that it could read past
            try:
                result = call()
            except (ValueError, PivotalError) as error:
                if isinstance(error, UnicodeError):
                    raise TypeError("Python's own words, not a sentence of ours") from error
                sentence = str(error)
        TALLY[self.kind, "read" if sentence is None else "refused"] += 1
        if sentence is not None:
            assert sentence, "an empty sentence"
            assert "\n" not in sentence, sentence
            assert "Traceback" not in sentence, sentence
            assert any(name in sentence for name in names), (sentence, names)
        return result, sentence


@contextlib.contextmanager
def limited():
    """Fail a case that takes longer than anyone would wait."""

    def stop(number, frame):
        raise AssertionError(f"a case takes longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    start = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - start < SECONDS


@pytest.fixture
def outcomes():
    """`outcomes(kind)`: counts under that name."""
    return Outcomes


@pytest.fixture
def only(tmp_path):
    """`only(path)`: write bytes there, and check at the end that nothing else stands beside it."""
    written = []

    def write(name, data):
        path = tmp_path / name
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        written.append(name)
        return path

    yield write
    assert sorted(os.listdir(tmp_path)) == sorted(set(written))


def pytest_terminal_summary(terminalreporter):
    if not TALLY:
        return
    terminalreporter.section("fuzzed inputs")
    for kind in sorted({kind for kind, _ in TALLY}):
        read, refused = TALLY[kind, "read"], TALLY[kind, "refused"]
        terminalreporter.write_line(
            f"{kind}: {read + refused}, of which {refused} refused and {read} read"
        )
    terminalreporter.write_line(f"all: {sum(TALLY.values())}")
