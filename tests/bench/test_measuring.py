import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from pivotal.bench.cases import Case, Prepared
from pivotal.bench.errors import WrongResultError
from pivotal.bench.measuring import measure
from pivotal.bench.rounds import Effort
from pivotal.bench.rows import append, read
from pivotal.bench.tables import cells

CPU = torch.device("cpu")


def test_a_row_has_samples_intervals_ceilings_and_where_it_was_measured(sleeping, rows_of):
    (row,) = rows_of([sleeping("a", 100.0)])
    assert row["status"] == "timed"
    assert len(row["samples"]) >= 3
    assert row["seconds"]["low"] <= row["seconds"]["p50"] <= row["seconds"]["high"]
    assert row["seconds"]["p50"] == pytest.approx(100, rel=0.1)
    assert row["ceilings"]["flops_per_second"] > 1e8
    assert row["environment"]["versions"]["torch"] == torch.__version__
    assert {"commit", "dirty", "cpu", "threads", "load_average"} <= set(row["environment"])


def test_what_fails_its_check_or_cannot_be_prepared_is_a_row_and_is_not_timed(sleeping, rows_of):
    def wrong(result):
        raise WrongResultError("off by a mile")

    def broken():
        raise RuntimeError("no network today")

    cases = [
        sleeping("wrong", 0.0, check=wrong),
        Case("suite", "broken", broken),
        sleeping("absent", 0.0, needs="a CUDA device is needed"),
        sleeping("right", 0.001),
    ]
    rows = {row["case"]: row for row in rows_of(cases, rounds=3)}
    assert rows["wrong"]["error"] == "WrongResultError: off by a mile"
    assert rows["broken"]["error"] == "RuntimeError: no network today"
    assert rows["absent"]["reason"] == "a CUDA device is needed"
    assert all("samples" not in rows[name] for name in ("wrong", "broken", "absent"))
    assert rows["right"]["status"] == "timed"


def test_a_case_that_fails_among_its_rounds_is_a_row_and_the_others_of_its_group_go_on(
    sleeping, rows_of
):
    calls = []

    def run():
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")

    prepared = Prepared(run, lambda r: {}, counted=False)
    cases = [Case("suite", "fragile", lambda: prepared), sleeping("sturdy", 1.0)]
    fragile, sturdy = rows_of(cases, rounds=5)
    assert (fragile["status"], fragile["error"]) == ("failed", "RuntimeError: out of memory")
    assert "samples" not in fragile
    assert len(calls) == 3
    assert sturdy["status"] == "timed"
    assert len(sturdy["samples"]) >= 3


def test_of_a_failure_a_row_keeps_the_first_line(rows_of):
    def run():
        raise RuntimeError("no compiled frames.\n  - forward (/home/someone/unet.py:105): ..")

    (row,) = rows_of([Case("suite", "broken", lambda: Prepared(run, lambda r: {}))])
    assert row["error"] == "RuntimeError: no compiled frames."


def test_work_that_can_not_be_counted_where_it_runs_is_counted_by_its_eager_twin(rows_of):
    square = torch.ones(8, 8)

    def hidden():
        # As compiled code does: torch.compile refuses to begin under such a mode.
        assert _get_current_dispatch_mode() is None
        return square

    hides = Prepared(hidden, lambda r: {}, eager=lambda: square @ square)
    shows = Prepared(lambda: square @ square, lambda r: {})
    served = Prepared(hidden, lambda r: {}, counted=False, eager=lambda: square @ square)
    cases = [
        Case("suite", name, lambda prepared=prepared: prepared)
        for name, prepared in (("hides", hides), ("shows", shows), ("served", served))
    ]
    rows = {row["case"]: row for row in rows_of(cases, rounds=2)}
    assert {row["flops"] for row in rows.values()} == {2 * 8**3}
    assert "moved_bytes" in rows["shows"]
    assert "moved_bytes" not in rows["hides"]
    assert "peak_bytes" in rows["hides"]
    assert "peak_bytes" not in rows["served"]
    assert [cells(rows[name])[5:8].count("-") for name in ("shows", "hides", "served")] == [0, 1, 2]


def test_the_first_call_and_compiling_are_told_apart_from_the_rest(rows_of, clock):
    calls = []

    def run():
        calls.append(1)
        clock.spend(5000 if len(calls) == 1 else 100, 0)

    prepared = Prepared(run, lambda r: {}, compile=lambda: clock.spend(2000, 0), counted=False)
    (row,) = rows_of([Case("suite", "cold", lambda: prepared)], rounds=4)
    assert row["first_seconds"] == pytest.approx(5000, rel=0.01)
    assert row["compile_seconds"] == pytest.approx(2000, rel=0.01)
    assert max(row["samples"]) < 150


def test_each_case_is_held_against_a_product_in_its_own_dtype(rows_of):
    def case(dtype):
        run = Prepared(lambda: torch.ones(4) @ torch.ones(4), lambda r: {})
        return Case("suite", dtype, lambda: run, {"dtype": dtype})

    single, double, same = rows_of([case(each) for each in ("float32", "float64", "tf32")])
    samples = [each["ceilings"]["samples"] for each in (single, double, same)]
    assert samples[0]["a large matrix product"] != samples[1]["a large matrix product"]
    assert samples[0] == samples[2]
    assert samples[0]["a large copy"] == samples[1]["a large copy"]


def test_cases_of_a_group_take_turns(rows_of):
    order = []

    def case(name):
        run = Prepared(lambda: order.append(name), lambda r: {}, counted=False)
        return Case("suite", name, lambda: run)

    rows_of([case("a"), case("b")], rounds=4)
    turns = order[2:]  # after the first calls
    assert all({turns[i], turns[i + 1]} == {"a", "b"} for i in range(0, len(turns), 2))


def test_sampling_ends_once_every_interval_is_narrow(sleeping, rows_of):
    (steady,) = rows_of([sleeping("steady", 1000.0, noise=0.001)], rounds=40)
    (wild,) = rows_of([sleeping("wild", 1000.0, noise=0.25)], rounds=15)
    assert len(steady["samples"]) < 10
    assert len(wild["samples"]) == 15
    assert steady["noisy"] is None
    assert "half-width" in wild["noisy"]
    with pytest.raises(ValueError, match="fewest <= rounds"):
        Effort(rounds=2, fewest=3)
    assert Effort().fewest < Effort().rounds


def test_what_was_measured_before_an_interruption_is_kept(sleeping, tmp_path):
    def interrupted(what, done, most):
        if what == "suite: second":
            raise KeyboardInterrupt

    cases = [sleeping("first", 100.0, group="1"), sleeping("second", 100.0, group="2")]
    path = tmp_path / "bench.jsonl"

    def run():
        for row in measure(cases, CPU, Effort(3, 3, 0.0), listener=interrupted):
            append(path, row)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert [row["case"] for row in read(path)] == ["first"]
