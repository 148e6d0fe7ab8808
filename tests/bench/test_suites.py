from pathlib import Path

import pytest
import torch

from pivotal.bench.measuring import measure
from pivotal.bench.rounds import Effort
from pivotal.bench.suites import calls, concurrency, edits, unet
from pivotal.bench.suites.plan import Plan
from pivotal.bench.suites.registry import cases_of
from pivotal.bench.tables import cells
from pivotal.runtime.compiled_unet import CompileOptions


def test_exported_networks_are_asked_for_nothing_but_forward_and_are_absent_without_a_folder():
    found = [
        each for each in unet.cases(Plan(quick=False))
        if each.settings["backend"] in ("onnx", "tensorrt")
    ]  # fmt: skip
    assert {each.settings["work"] for each in found} == {"forward"}
    assert all("--exported FOLDER is needed" in each.needs for each in found)
    assert not any("--exported" in str(each.needs) for each in unet.cases(Plan()))


def rows_of(cases):
    return list(measure(cases, torch.device("cpu"), Effort(1, 1, 0.0)))


@pytest.mark.slow
def test_calls_at_once_and_in_a_row_are_timed_with_their_latencies():
    rows = rows_of(concurrency.cases(Plan(steps=2)))
    assert [row["settings"]["way"] for row in rows] == ["in a row", "at once"]
    for row in rows:
        assert row["status"] == "timed", row
        served, (seconds,) = row["served"], row["samples"]
        assert 0 < served["latency_p50"] <= served["latency_p95"] <= seconds
        assert served["images_per_second"] >= row["images"] / seconds
        assert row["check"]["largest_difference"] <= concurrency.TOLERANCE
        assert "images/s" in cells(row)[-1]


def test_what_a_programmer_waits_for_is_checked_and_timed():
    rows = rows_of(calls.cases(Plan(steps=2)))
    assert len(rows) == 3
    assert all(row["status"] == "timed" for row in rows), rows
    cached, edited, cancelled = (row["seconds"]["p50"] for row in rows)
    assert cached < edited
    assert cancelled < edited


def test_the_networks_pictures_have_the_size_that_is_asked_for():
    (row,) = rows_of(list(unet.cases(Plan(size=(32, 48))))[:1])
    assert "32x48 pixels" in row["case"]
    assert row["check"]["latents"] * 16 == 32 * 48


def test_compiled_engines_are_other_cases_and_the_network_is_timed_both_ways():
    names = ("unet", "methods", "edits", "end-to-end", "concurrency", "calls")
    eager = {each.key for each in cases_of(names, Plan())}
    compiled = list(cases_of(names, Plan(compile=True)))
    assert {each.key for each in compiled if each.suite == "unet"} & eager
    assert {"torch", "compiled"} == {
        each.settings["backend"] for each in compiled if each.suite == "unet"
    }
    for each in compiled:
        if each.suite != "unet":
            assert each.key not in eager
            assert each.name.endswith(", compiled")
    same = list(cases_of(["kernels", "cold-start"], Plan(compile=True)))
    assert {each.key for each in same} == {
        each.key for each in cases_of(["kernels", "cold-start"], Plan())
    }


@pytest.mark.slow
def test_compiled_engines_are_timed_and_counted_as_their_eager_twins():
    compiled = Plan(steps=2, compile=CompileOptions(backend="eager"))

    def chosen(plan):
        found = cases_of(["unet", "methods", "edits", "end-to-end"], plan)
        few = ("ddim", "1 targets", "forward, 1 rows", "backward, 1 rows", "direct, 2 steps")
        return [each for each in found if any(word in each.name for word in few)]

    eager = rows_of(chosen(Plan(steps=2)))
    flops = {(row["suite"], row["case"]): row.get("flops") for row in eager}
    rows = rows_of(chosen(compiled))
    assert all(row["status"] == "timed" for row in rows), rows
    for row in rows:
        name, _, how = row["case"].rpartition(", ")
        if how == "compiled":
            assert row.get("flops") == flops[row["suite"], name]
            assert row["compile_seconds"] > 0


@pytest.mark.slow
def test_an_exported_network_is_checked_against_torch_and_timed_beside_it(tmp_path):
    pytest.importorskip("onnxruntime")
    from pivotal.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["export", "onnx", "--model", "shapes", "-o", str(tmp_path / "made")])
    assert not stop.value.code
    plan = Plan(exported=Path(tmp_path / "made"))
    chosen = [each for each in unet.cases(plan) if each.settings["work"] == "forward"]
    rows = list(measure(chosen, plan.torch_device, Effort(1, 1, 0.0)))
    assert [row["settings"]["backend"] for row in rows] == ["torch", "onnx", "torch", "onnx"]
    assert all(row["status"] == "timed" for row in rows), rows
    assert all(row["check"]["eps_error"] < 1e-5 for row in rows)


def test_plain_sampling_is_checked_alone_and_says_iterations_a_second():
    found = [each for each in edits.cases(Plan(steps=2)) if "plain" in each.name]
    rows = rows_of(found)
    assert [row["status"] for row in rows] == ["timed", "timed"], rows
    assert [row["settings"]["pictures"] for row in rows] == [1, 2]
    assert [row["check"]["unet_rows"] for row in rows] == [4, 8]  # two a picture and step
    for row in rows:
        assert cells(row)[-1] == f"{2 / row['seconds']['p50']:.3g} guided it/s"
