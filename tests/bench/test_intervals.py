import numpy as np
import pytest

from pivotal.bench.intervals import (
    mean_interval,
    median_interval,
    noise_of,
    paired_ratio_interval,
    ratio_interval,
)


@pytest.mark.parametrize("count", [6, 9, 20, 31])
def test_the_interval_holds_the_median_of_any_distribution_95_times_in_100(count):
    rng = np.random.default_rng(count)
    samples = rng.lognormal(0, 1.5, (2000, count))  # its median is 1
    held = [(median_interval(s).low <= 1 <= median_interval(s).high) for s in samples.tolist()]
    assert np.mean(held) > 0.94
    assert np.mean(held) < 0.995  # and it is no wider than it has to be


def test_fewer_than_six_samples_are_called_too_few():
    assert median_interval([3.0, 1.0, 2.0]).low == 1.0
    assert noise_of([1.0] * 5) == "5 samples; 6 are needed for an interval"
    assert noise_of([1.0] * 6) is None


def test_wide_and_drifting_samples_are_called_noisy():
    assert "half-width" in noise_of([1.0, 2.0] * 6)
    assert "drifted" in noise_of([1.0] * 10 + [1.08] * 10)
    assert noise_of([1.0, 1.01] * 10) is None


def test_a_ratios_interval_holds_the_true_ratio_and_leaves_1_where_it_should():
    rng = np.random.default_rng(0)
    before, after = rng.normal(1, 0.03, 20).tolist(), rng.normal(1.2, 0.03, 20).tolist()
    ratio = ratio_interval(before, after)
    assert 1 < ratio.low < 1.2 < ratio.high < 1.3
    assert ratio_interval(before, before).low <= 1 <= ratio_interval(before, before).high
    assert ratio == ratio_interval(before, after)


def test_pairs_forgive_a_machine_whose_speed_drifts():
    drift = np.linspace(1, 3, 12)
    assert paired_ratio_interval(drift.tolist(), (1.5 * drift).tolist()).half_width < 1e-9


def test_a_means_interval_narrows_with_more_values():
    few, many = (np.random.default_rng(1).normal(5, 1, n).tolist() for n in (10, 1000))
    assert mean_interval(many).half_width < mean_interval(few).half_width
    assert mean_interval([2.5]) == mean_interval([2.5, 2.5])
