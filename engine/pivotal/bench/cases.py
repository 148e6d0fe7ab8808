"""A case as data: what is timed, what proves its result, and what makes it the same case again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Prepared:
    """A case ready to run.

    run: the call that is timed; it returns what it computed. check: looks at a result of `run` and
    returns figures of its quality; it raises WrongResultError where the result is not right.
    compile: what must happen once before `run`, timed apart. images: how many pictures one call
    serves. counted: whether FLOPs and memory are counted in this process. eager: the same work by
    torch's own operations, for FLOPs to be counted by where `run` hides them: compiled, exported.
    served: figures of the last n runs that their seconds don't tell, such as latencies.
    """

    run: Callable[[], Any]
    check: Callable[[Any], Mapping[str, Any]]
    compile: Callable[[], object] | None = None
    images: int = 1
    counted: bool = True
    eager: Callable[[], Any] | None = None
    served: Callable[[int], Mapping[str, float]] | None = None


@dataclass(frozen=True)
class Case:
    """One thing to time.

    group: cases of one group are prepared together and timed in turns. settings: all that decides
    the work, as JSON has it. needs: why it can't run here, where that is known; then it is a row
    that says so.
    """

    suite: str
    name: str
    prepare: Callable[[], Prepared] = field(repr=False, compare=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    needs: str | None = None

    @property
    def key(self) -> str:
        """Equal for the same work, whenever and wherever it is measured."""
        return key_of({"suite": self.suite, "case": self.name, "settings": dict(self.settings)})


def key_of(row: Mapping[str, Any]) -> str:
    """The key of the case that a row belongs to."""
    return json.dumps([row["suite"], row["case"], row["settings"]], sort_keys=True)
