"""The benchmark of submitted calls: what it reports, and what it refuses to."""

import itertools
from functools import partial

import pytest

import concurrency
import pivotal
from pivotal.bench.errors import WrongResultError
from pivotal.bench.suites.concurrency import TOLERANCE

PROMPT = "a red circle on a gray background"


@pytest.fixture(scope="module")
def engine():
    with pivotal.Engine.load("shapes") as loaded:
        yield loaded


def test_both_ways_are_timed_and_agree(engine):
    calls = [
        partial(engine.generate, PROMPT, num_inference_steps=1, seed=seed, output_type="latent")
        for seed in range(2)
    ]
    found = concurrency.compared(engine, calls, pairs=2)
    assert found["calls"] == 2
    assert found["largest_difference"] < TOLERANCE
    for way in ("sequential", "concurrent"):
        figures = found[way]
        assert len(found["samples"][way]) == 2
        assert 0 < figures["latency_p50"] <= figures["latency_p95"] <= max(found["samples"][way])
        assert figures["images_per_second"] * max(found["samples"][way]) >= 2


def test_results_that_differ_are_not_timed(engine):
    seeds = itertools.count()
    calls = [lambda: engine.generate(PROMPT, num_inference_steps=1, seed=next(seeds))]
    with pytest.raises(WrongResultError, match="results differ by"):
        concurrency.compared(engine, calls, pairs=1)
