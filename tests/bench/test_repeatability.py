"""Two quick runs on one machine, with real work."""

import pytest
import torch

from pivotal.bench.compare import compare
from pivotal.bench.intervals import Interval
from pivotal.bench.measuring import measure
from pivotal.bench.rounds import Effort
from pivotal.bench.suites.plan import Plan
from pivotal.bench.suites.registry import cases_of


def quick():
    cases = cases_of(["kernels", "unet"], Plan())
    rows = measure(cases, torch.device("cpu"), Effort(rounds=30, seconds=3.0))
    return {row["case"]: row for row in rows if row["status"] == "timed"}


def interval(row):
    return Interval(row["seconds"]["p50"], row["seconds"]["low"], row["seconds"]["high"])


@pytest.mark.slow
def test_two_quick_runs_agree_within_their_intervals_or_say_that_they_are_too_noisy():
    first, second = quick(), quick()
    assert set(first) == set(second)
    agreeing = [
        bool(row["noisy"] or second[name]["noisy"])
        or interval(row).overlaps(interval(second[name]))
        for name, row in first.items()
    ]
    assert sum(agreeing) >= 0.9 * len(agreeing)
    for row in (*first.values(), *second.values()):
        assert row["noisy"] or interval(row).half_width <= 0.05
    assert compare(list(first.values()), list(second.values()))
