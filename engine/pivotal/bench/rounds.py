"""Cases timed in turns: all once in every round, in random order, beside the machine's ceilings."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from pivotal.bench.cases import Case, Prepared
from pivotal.bench.disturbance import Sample, disturbance_of, undisturbed
from pivotal.bench.intervals import WIDEST, noise_of, run_interval
from pivotal.bench.limits import Ceilings, Counted
from pivotal.bench.timing import Stopwatch, large_copy, large_product

logger = logging.getLogger(__name__)

Listener = Callable[[str, int, int], None]
"""Told before each piece of work: what, how many rounds are done, of how many at most."""

PRODUCT, COPY = "a large matrix product", "a large copy"


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    rounds: the most samples of a case. fewest: the least, whatever it takes; under 6 a case is
    called too noisy. seconds: of a case, after which no further round is begun. Sampling ends early
    once every interval is narrow.
    """

    rounds: int = 30
    fewest: int = 3
    seconds: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.fewest <= self.rounds or self.seconds < 0:
            raise ValueError(
                f"rounds={self.rounds}, fewest={self.fewest}, seconds={self.seconds}; "
                "1 <= fewest <= rounds and 0 <= seconds are expected"
            )


@dataclass
class Running:
    """A case that passed its check, on its way through the rounds.

    dtype: of the matrix product that it is held against. error: of the call that failed in a
    round, after which it is not called again.
    """

    case: Case
    prepared: Prepared
    facts: dict[str, Any]
    work: Counted | None
    dtype: torch.dtype
    samples: list[Sample] = field(default_factory=list)
    error: str | None = None


Sampled = tuple[Ceilings, dict[str, list[Sample]]]
"""The machine's ceilings in one dtype, and the calls they come from, by name."""


def time_in_rounds(
    running: Sequence[Running], stopwatch: Stopwatch, effort: Effort, listener: Listener
) -> dict[torch.dtype, Sampled]:
    """Time all in rounds, in random order, the ceilings among them, after a round to warm up.

    Rounds spread each case over the whole time, so that a machine whose speed drifts slows all.
    Returns the ceilings and their samples for each dtype that the cases have.
    """
    needed = dict.fromkeys(each.dtype for each in running)
    products = {each: large_product(stopwatch.device, each) for each in needed}
    product_samples: dict[torch.dtype, list[Sample]] = {each: [] for each in needed}
    copy, moved = large_copy(stopwatch.device)
    copy_samples: list[Sample] = []

    def ceiling(run: Callable[[], object], samples: list[Sample], keep: bool) -> None:
        sample = stopwatch.sample(run)
        if keep:
            samples.append(sample)

    turns: list[Callable[[bool], None]] = [
        *(partial(ceiling, products[each][0], product_samples[each]) for each in needed),
        partial(ceiling, copy, copy_samples),
        *(partial(_turn, each, stopwatch) for each in running),
    ]
    order, deadline = random.Random(effort.seed), time.monotonic() + effort.seconds * len(running)
    for turn in range(-1, effort.rounds):
        listener(running[0].case.suite, max(turn, 0), effort.rounds)
        for take in order.sample(turns, len(turns)):
            take(turn >= 0)
        if turn + 1 >= effort.fewest and (
            time.monotonic() > deadline or all(_settled(each) for each in running)
        ):
            break
    return {
        each: (
            Ceilings(products[each][1] / _least(samples), moved / _least(copy_samples)),
            {PRODUCT: samples, COPY: copy_samples},
        )
        for each, samples in product_samples.items()
    }


def said(error: Exception) -> str:
    """Of a failed call, for its row: the first line. What follows are other people's traces, with
    paths of this machine."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"


def _turn(running: Running, stopwatch: Stopwatch, keep: bool) -> None:
    """One more sample, unless it is the warm-up's or an earlier call failed."""
    if running.error is not None:
        return
    try:
        sample = stopwatch.sample(running.prepared.run)
    except Exception as error:  # a failed case is a row, not the end of its group
        logger.info("%s: %s fails", running.case.suite, running.case.name, exc_info=True)
        running.error = said(error)
        return
    if keep:
        running.samples.append(sample)


def _settled(running: Running) -> bool:
    """Half as wide as is allowed, so that a second run's interval has room to overlap."""
    if running.error is not None:
        return True
    if disturbance_of(running.samples):
        return False
    samples = undisturbed(running.samples)
    return run_interval(samples).half_width <= WIDEST / 2 and noise_of(samples) is None


def _least(samples: Sequence[Sample]) -> float:
    return min(each.seconds for each in samples)
