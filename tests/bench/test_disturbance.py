"""Calls beside which something else had the processor."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from pivotal.bench.disturbance import Sample, disturbance_of, undisturbed, waited
from pivotal.bench.intervals import median_interval, run_interval
from pivotal.bench.timing import Stopwatch


def test_calls_that_waited_are_left_out_unless_too_few_remain():
    calm, late = [Sample(1.0, 0.001)] * 6, [Sample(3.0, 2.0)] * 4
    assert undisturbed([*calm, *late]) == [1.0] * 6
    assert disturbance_of([*calm, *late]) is None
    assert len(undisturbed([*calm[:5], *late])) == 9
    assert disturbance_of([*calm[:5], *late]) == "others had the processor in 4 of 9 calls"
    assert disturbance_of(late) is None  # too few were timed at all, which says more


def test_a_slow_call_that_waited_for_nobody_stays():
    assert undisturbed([Sample(1.0)] * 7 + [Sample(9.0)]) == [1.0] * 7 + [9.0]


def test_waiting_is_what_the_scheduler_and_the_hypervisor_say_of_our_cores(tmp_path):
    (tmp_path / "thread-self").mkdir()
    (tmp_path / "thread-self" / "schedstat").write_text("5000000000 250000000 77\n")
    own = sorted(os.sched_getaffinity(0))[0]
    lines = [f"cpu{core} 1 2 3 4 5 6 7 {8 if core == own else 0} 0 0" for core in range(4096)]
    (tmp_path / "stat").write_text("cpu  9 9 9 9 9 9 9 999 0 0\n" + "\n".join(lines) + "\nintr 1\n")
    assert waited(tmp_path) == pytest.approx(0.25 + 8 / os.sysconf("SC_CLK_TCK"))
    assert waited(tmp_path / "elsewhere") == 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_process_that_takes_half_of_the_core_is_noticed():
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    other = subprocess.Popen(["sh", "-c", "echo; while :; do :; done"], stdout=subprocess.PIPE)
    try:
        other.stdout.readline()

        def work():
            end = time.perf_counter() + 0.1
            while time.perf_counter() < end:
                pass

        samples = [Stopwatch(torch.device("cpu")).sample(work) for _ in range(3)]
    finally:
        other.kill()
        other.wait()
        os.sched_setaffinity(0, cores)
    assert sum(each.disturbed for each in samples) >= 2


def test_a_drifting_machines_median_is_held_where_independent_samples_interval_misses_it():
    rng = np.random.default_rng(0)
    held = {median_interval: 0, run_interval: 0}
    for _ in range(300):
        drift, level = [], rng.normal(0, 0.05)
        for step in rng.normal(0, 0.05, 30):  # neighbours correlate by 0.7
            level = 0.7 * level + 0.714 * step
            drift.append(1 + level)
        for kind in held:
            interval = kind(drift)
            held[kind] += interval.low <= 1 <= interval.high
    assert held[median_interval] / 300 < 0.75
    assert held[run_interval] / 300 > held[median_interval] / 300 + 0.15


def test_of_independent_samples_the_interval_is_hardly_wider():
    rng = np.random.default_rng(1)
    drawn = rng.normal(1, 0.05, (300, 30)).tolist()
    plain, wider = (
        [kind(each).half_width for each in drawn] for kind in (median_interval, run_interval)
    )
    assert np.median(wider) < 1.25 * np.median(plain)
