"""The published architectures at their own widths, with random weights: gigabytes, and minutes."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "exports.py"
ONNX_LIMIT = 2 * 1024**3  # bytes in one protobuf file
TOLERANCE = {"float32": 1e-4, "float16": 2e-2}


def require_memory(gigabytes):
    lines = Path("/proc/meminfo").read_text().splitlines()
    (free,) = (int(line.split()[1]) / 1e6 for line in lines if line.startswith("MemAvailable"))
    if free < gigabytes:
        pytest.skip(f"{gigabytes} GB of free memory are needed; {free:.0f} are here")


def exported(model, dtype, folder, *more):
    """The row of the benchmark's own run, in a process whose memory ends with it."""
    results = folder / "rows.jsonl"
    asked = ("--model", model, "--dtype", dtype, "--side", 256, "--results", results, *more)
    words = [sys.executable, BENCHMARK, *asked, "--keep", folder / "kept"]
    subprocess.run([str(word) for word in words], check=True)
    (row,) = (json.loads(line) for line in results.read_text().splitlines())
    assert max(row["onnx"]["largest_difference"].values()) < TOLERANCE[dtype]
    return row, json.loads((folder / "kept" / "onnx" / "export.json").read_text())


def test_sd15_is_exported_and_built(tmp_path):
    require_memory(10)
    targets = [] if find_spec("tensorrt_rtx") is None else ["--sm", "89"]
    row, record = exported("random:sd1", "float16", tmp_path, *targets)
    assert record["prediction_type"] == "epsilon"
    assert row["onnx"]["peak_own_bytes"] < 8e9
    if not targets:
        pytest.skip("exported; TensorRT-RTX is not installed")
    weights = row["onnx"]["bytes"]["unet.weights"]
    for name in ("unet", "unet-plain"):
        plan = (tmp_path / "kept" / "engines" / f"{name}.engine").read_bytes()
        assert len(plan) > weights  # they are in it
        assert b"sm89" in plan


def test_sd21_with_v_prediction_is_exported_over_onnxs_own_limit(tmp_path):
    require_memory(10)
    row, record = exported("random:sd2", "float32", tmp_path)
    assert record["prediction_type"] == "v_prediction"
    sizes = row["onnx"]["bytes"]
    assert sizes["unet.weights"] > ONNX_LIMIT
    assert all(size < ONNX_LIMIT for name, size in sizes.items() if name.endswith(".onnx"))


def test_sdxl_is_exported_in_float16(tmp_path):
    require_memory(16)
    row, record = exported("random:sdxl", "float16", tmp_path)
    assert {"text_encoder", "text_encoder_2"} <= set(record["errors"])
    assert row["onnx"]["bytes"]["unet.weights"] > ONNX_LIMIT
    assert row["onnx"]["peak_own_bytes"] < 16e9
