import importlib.util
import io
import json
import sys
from pathlib import Path

import pytest
import torch

from pivotal_kernels.backends import Backend
from pivotal_kernels.routed_attention import BACKENDS

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernels" / "routed_attention.py"


@pytest.fixture
def benchmark(monkeypatch):
    spec = importlib.util.spec_from_file_location("routed_attention_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds its folder
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def rows_of(benchmark, *arguments):
    out = io.StringIO()
    benchmark.main(["--device", "cpu", "--dtype", "float32", "--dry-run", *arguments], out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_dry_run_times_every_case_with_each_implementation(benchmark):
    rows = rows_of(benchmark, "--impl", "sdpa", "--impl", "reference")
    assert len(rows) == 3 * len(benchmark.CASES)
    for row in rows:
        assert "error" not in row
        assert len(row["samples"]) == 3
        assert row["seconds"]["p20"] <= row["seconds"]["p50"] <= row["seconds"]["p80"]
        assert row["environment"]["versions"]["torch"] == torch.__version__


def test_what_fails_its_check_is_written_and_not_timed(benchmark, monkeypatch):
    def wrong(*arguments):
        out, maps = BACKENDS["reference"].run(*arguments)
        return out * 1.001, maps

    monkeypatch.setitem(BACKENDS, "sdpa", Backend(wrong))
    rows = rows_of(benchmark, "--impl", "sdpa", "--impl", "reference")
    failed = [row for row in rows if row["impl"] == "sdpa"]
    assert len(failed) == len(benchmark.CASES)
    for row in failed:
        assert row["error"].startswith("AssertionError: out: ")
        assert "samples" not in row


def test_what_this_machine_cannot_run_is_written_with_the_reason(benchmark):
    if torch.cuda.is_available():
        pytest.skip("this machine can run it")
    rows = [row for row in rows_of(benchmark, "--impl", "triton") if row["impl"] == "triton"]
    assert all("triton needs a CUDA device" in row["error"] for row in rows)
