import numpy as np
import pytest

from pivotal.bench.compare import compare, machine_ratio
from pivotal.bench.errors import ResultsError
from pivotal.bench.intervals import Interval

STEADY = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.01]


def test_a_slowdown_of_20_percent_is_caught_between_two_runs(sleeping, rows_of):
    names = [f"case {i}" for i in range(3)]
    before = rows_of([sleeping(name, 1000.0) for name in names], rounds=10)
    again = rows_of([sleeping(name, 1000.0) for name in names], rounds=10)
    slower = rows_of(
        [sleeping(name, 1200.0 if name == "case 1" else 1000.0) for name in names], rounds=10
    )
    verdicts = {each.case: each.verdict for each in compare(before, slower)}
    assert verdicts["case 1"] == "slower"
    assert "slower" not in (verdicts["case 0"], verdicts["case 2"])
    assert all(each.verdict != "slower" for each in compare(before, again))


def test_small_or_uncertain_changes_are_not_called_slower(row):
    def verdict(samples, **more):
        (found,) = compare([row(STEADY)], [row(samples, **more)])
        return found.verdict

    assert verdict([1.03 * s for s in STEADY]) == "no difference shown"
    assert verdict([1.2 * s for s in STEADY]) == "slower"
    assert verdict([0.8 * s for s in STEADY]) == "faster"
    assert verdict([0.5, 2.0] * 4, noisy="half-width 75 %") == "too noisy"
    few = "3 samples; 6 are needed for an interval"
    assert verdict([1.2 * s for s in STEADY[:3]], noisy=few) == "too noisy"


def test_noise_alone_is_seldom_called_slower_however_few_the_samples(row):
    rng = np.random.default_rng(0)

    def called(count):
        before, after = (row(rng.lognormal(0, 0.2, count).tolist()) for _ in range(2))
        return compare([before], [after])[0].verdict == "slower"

    for count in (3, 6, 12):
        assert sum(called(count) for _ in range(200)) <= 10  # 2.5 % are expected above


def test_what_ran_before_and_fails_now_counts_as_slower(row):
    failed = {**row(STEADY), "status": "failed", "error": "WrongResultError: off"}
    (found,) = compare([row(STEADY)], [failed])
    assert (found.verdict, found.reason) == ("slower", "WrongResultError: off")
    (found,) = compare([failed], [row(STEADY)])
    assert found.verdict == "not timed"


def test_only_cases_with_equal_settings_are_compared(row):
    other = {**row(STEADY, "a"), "settings": {"model": "random:sd1"}}
    with pytest.raises(ResultsError, match="in common"):
        compare([row(STEADY, "a")], [other])
    assert [each.case for each in compare([row(STEADY), row(STEADY, "b")], [row(STEADY, "b")])] == [
        "b"
    ]


def test_a_machine_that_was_slower_itself_is_told(row):
    slow = row(STEADY)
    slow["ceilings"]["samples"] = {"a large matrix product": [0.2] * 8}
    assert machine_ratio([row(STEADY)], [slow]) == Interval(2.0, 2.0, 2.0)


def test_what_is_only_as_slow_as_the_machine_was_is_no_regression(row):
    def verdict(slowdown, machine, **where):
        after = row([slowdown * each for each in STEADY])
        after["ceilings"]["samples"] = {"a large matrix product": [0.1 * machine] * 8}
        after["environment"] |= where
        (found,) = compare([row(STEADY)], [after])
        return found.verdict

    assert verdict(1.3, 1.3) == "as the machine"
    assert verdict(0.7, 0.7) == "as the machine"
    assert verdict(1.3, 1.0) == "slower"
    assert verdict(1.6, 1.3) == "slower"
    assert verdict(1.3, 1.3, cpu="another processor") == "slower"
