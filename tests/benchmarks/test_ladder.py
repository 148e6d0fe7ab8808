"""The ladder's rungs: which there are, and that what compiles is timed and counted."""

import pytest
import torch

import ladder
from pivotal.bench.measuring import measure
from pivotal.bench.rounds import Effort


def cases_of(compiles):
    return {
        case.name: case for case in ladder.cases(ladder.Ladder("shapes", "cpu", 2, 1, compiles))
    }


def test_what_compiles_waits_to_be_asked_for_and_needs_no_gpu_unless_it_makes_graphs():
    shy, asked = cases_of(False), cases_of(True)
    for name in ("+ compile", "alone: compile"):
        assert "--compile" in shy[name].needs
        assert asked[name].needs is None
    assert asked["+ CUDA graphs"].needs == "a CUDA device is needed"


def test_a_rung_is_judged_by_the_picture_that_comes_back():
    case = cases_of(False)["alone: time-parallel fit"]
    (row,) = measure([case], torch.device("cpu"), Effort(1, 1, 0.0))
    assert row["status"] == "timed", row
    assert row["check"]["psnr"] >= row["check"]["plain_psnr"] - ladder.LOSS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["+ compile", "alone: compile"])
def test_what_compiles_is_timed_and_its_work_counted(name):
    (row,) = measure([cases_of(True)[name]], torch.device("cpu"), Effort(1, 1, 0.0))
    assert row["status"] == "timed", row
    assert row["compile_seconds"] > row["first_seconds"]
    assert row["flops"] > 1e9
    assert "moved_bytes" not in row
