"""Whether something else had the processor while a call was timed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pivotal.bench.intervals import FEWEST

ALLOWED = 0.02
"""Of a call's seconds, for which others may have its cores before it counts as disturbed."""


@dataclass(frozen=True)
class Sample:
    """One call. waited: seconds of it in which it wanted a core and had none."""

    seconds: float
    waited: float = 0.0

    @property
    def disturbed(self) -> bool:
        return self.waited > ALLOWED * self.seconds


def waited(proc: Path = Path("/proc")) -> float:
    """Seconds that this thread has waited for a core so far, and that a hypervisor has taken from
    the cores it may use; 0 where the system doesn't tell.

    Linux: `schedstat` counts what other processes had, in ns; `stat`'s eighth number what other
    machines on the same host had ("steal"), in ticks, a few ms each (proc(5)).
    """
    try:
        delayed = int((proc / "thread-self" / "schedstat").read_text().split()[1]) / 1e9
        lines = (proc / "stat").read_text().splitlines()
        cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        ticks = [int(line.split()[8]) for line in lines if line.split(maxsplit=1)[0] in cores]
    except (AttributeError, IndexError, OSError, ValueError):
        return 0.0
    return delayed + sum(ticks) / os.sysconf("SC_CLK_TCK")


def undisturbed(samples: Sequence[Sample]) -> list[float]:
    """Seconds of the calls that had the processor to themselves; of all where those are too few.

    What decides is never how long a call took, so no slow call is dropped for being slow.
    """
    calm = [each.seconds for each in samples if not each.disturbed]
    return calm if len(calm) >= min(FEWEST, len(samples)) else [each.seconds for each in samples]


def disturbance_of(samples: Sequence[Sample]) -> str | None:
    """Why too few calls were left alone, or None; None too where too few were timed at all."""
    count = sum(each.disturbed for each in samples)
    if len(samples) < FEWEST or not count or len(samples) - count >= FEWEST:
        return None
    return f"others had the processor in {count} of {len(samples)} calls"
