"""Cases whose duration is known, and rows as a run of the harness makes them."""

import random
import time

import pytest
import torch

from pivotal.bench import timing
from pivotal.bench.cases import Case, Prepared
from pivotal.bench.measuring import measure
from pivotal.bench.rounds import Effort

CPU = torch.device("cpu")


class Clock:
    """The real clock, and the seconds that cases claim to have taken: a busy machine hardly shows
    among hundreds of them.
    """

    def __init__(self):
        self.claimed = 0.0
        self.draw = random.Random(0)

    def perf_counter(self):
        return time.perf_counter() + self.claimed

    def spend(self, seconds, noise):
        self.claimed += seconds * self.draw.gauss(1, noise)


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


@pytest.fixture
def sleeping(clock):
    """`sleeping(name, seconds)`: a case that takes so long, give or take 2 %."""

    def make(name, seconds, *, check=lambda result: {}, noise=0.02, **more):
        prepared = Prepared(lambda: clock.spend(seconds, noise), check, counted=False)
        return Case("suite", name, lambda: prepared, {"seconds": 1}, **more)

    return make


@pytest.fixture
def rows_of():
    """`rows_of(cases, rounds=..)`: measured on the CPU."""

    def run(cases, rounds=8, **more):
        return list(measure(cases, CPU, Effort(rounds, min(rounds, 3), 30.0), **more))

    return run


@pytest.fixture
def row():
    """`row(samples, case=..)`: a timed row with these samples."""

    def make(samples, case="a", *, noisy=None, commit="abc1234", **more):
        middle = sorted(samples)[len(samples) // 2]
        return {
            "schema": 1, "suite": "edits", "case": case, "settings": {"model": "shapes"},
            "group": "g", "time": "2026-11-22T20:00:00Z", "run": "r", "device": "cpu",
            "environment": {"commit": commit, "code": "c", "cpu": "a processor", "threads": 1,
                            "load_average": 0.5, "command": "pivotal bench",
                            "versions": {"torch": "2.13"}, "dirty": False},
            "status": "timed", "samples": samples, "noisy": noisy, "first_seconds": 2 * middle,
            "seconds": {"p20": min(samples), "p50": middle, "p80": max(samples),
                        "low": min(samples), "high": max(samples)},
            "seconds_per_image": middle, "images": 1, "check": {},
            "ceilings": {"flops_per_second": 1e11, "bytes_per_second": 1e10,
                         "samples": {"a large matrix product": [0.1] * 8}},
            **more,
        }  # fmt: skip

    return make
