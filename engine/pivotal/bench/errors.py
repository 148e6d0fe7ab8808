"""What measuring finds out."""

from __future__ import annotations

from importlib.util import find_spec

from pivotal.errors import PivotalError


class WrongResultError(PivotalError):
    """A case's result is not right, so it is not timed."""


class ResultsError(PivotalError):
    """Results can't be read, or hold nothing that was asked for."""


class MissingExtraError(PivotalError):
    """A library of the extra `pivotal[bench]` is not installed."""


def require_extra(*modules: str, what: str) -> None:
    """Raises MissingExtraError unless the modules are there."""
    for module in modules:
        if find_spec(module) is None:
            raise MissingExtraError(
                f"{what} needs {module}, which is not installed; install pivotal[bench]"
            )
