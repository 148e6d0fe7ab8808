"""The published architectures at their own sizes, with random weights: gigabytes, and minutes."""

import os
from importlib.util import find_spec

import pytest

from pivotal.model.load import load
from pivotal.runtime.exported.onnx_export import export_onnx
from pivotal.runtime.exported.profile import ShapeProfile, Span
from pivotal.runtime.exported.tensorrt_api import api_of
from pivotal.runtime.exported.tensorrt_build import BuildOptions, build

pytestmark = pytest.mark.slow
ONNX_LIMIT = 2 * 1024**3  # bytes in one protobuf file


def require_memory(gigabytes):
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    if free < gigabytes:
        pytest.skip(f"{gigabytes} GB of free memory are needed; {free:.0f} are here")


def exported(name, side, folder, *, dtype="float32", rows=2):
    model = load(name, dtype=dtype)
    fixed = Span(side, side)
    return model, export_onnx(model, ShapeProfile(Span(rows, rows), fixed, fixed), folder)


def test_sd15_is_exported_over_onnxs_own_limit_and_built(tmp_path):
    require_memory(12)
    onnx = tmp_path
    model, record = exported("random:sd1", 512, onnx)
    assert max(record.errors.values()) < 1e-4
    assert (onnx / "unet.weights").stat().st_size > ONNX_LIMIT
    assert all(path.stat().st_size < ONNX_LIMIT for path in onnx.glob("*.onnx"))
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("exported; TensorRT-RTX is not installed")
    scale, profile = model.autoencoder.scale, record.profile
    del model  # a builder needs its memory
    options = BuildOptions(sm=("89",), buckets=(2,))
    for name in ("unet", "unet-plain"):
        plan = build(onnx / f"{name}.onnx", profile, scale, api_of("tensorrt_rtx"), options)
        assert len(plan) > ONNX_LIMIT  # the weights are in it
        assert b"sm89" in plan


def test_sd21_with_v_prediction_is_exported(tmp_path):
    require_memory(12)
    _, record = exported("random:sd2", 256, tmp_path)
    assert record.prediction_type == "v_prediction"
    assert max(record.errors.values()) < 1e-4


def test_sdxl_is_exported_in_float16(tmp_path):
    require_memory(24)
    _, record = exported("random:sdxl", 256, tmp_path, dtype="float16", rows=1)
    assert {"text_encoder", "text_encoder_2"} <= set(record.errors)
    assert (tmp_path / "unet.weights").stat().st_size > ONNX_LIMIT
