from pathlib import Path

import pytest

from pivotal.bench.measuring import Effort, measure
from pivotal.bench.suites import unet
from pivotal.bench.suites.plan import Plan


def test_exported_networks_are_asked_for_nothing_but_forward_and_are_absent_without_a_folder():
    found = [
        each for each in unet.cases(Plan(quick=False))
        if each.settings["backend"] in ("onnx", "tensorrt")
    ]  # fmt: skip
    assert {each.settings["work"] for each in found} == {"forward"}
    assert all("--exported FOLDER is needed" in each.needs for each in found)
    assert not any("--exported" in str(each.needs) for each in unet.cases(Plan()))


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
