"""All networks of tiny SD 1, SD 2 and SDXL models, in every format and in sizes that vary."""

from importlib.util import find_spec

import onnx
import pytest
import torch

from pivotal.errors import BackendError
from pivotal.query import Denoise
from pivotal.runtime.exported.backend import denoiser_of
from pivotal.runtime.exported.onnx_check import require_typed
from pivotal.runtime.exported.onnx_export import export_onnx
from pivotal.runtime.exported.onnx_network import OnnxNetwork
from pivotal.runtime.exported.profile import ShapeProfile, Span
from pivotal.runtime.exported.tensorrt_api import api_of
from pivotal.runtime.exported.tensorrt_build import BuildOptions, build
from pivotal.runtime.torch_denoiser import TorchDenoiser

slow = pytest.mark.slow  # a traced network takes ten seconds, whatever its size
FIXED = ShapeProfile(Span(2, 2), Span(16, 16), Span(16, 16))


def question(latents, prompts, *, sdxl=False, side=8):
    return Denoise(
        latents(2, dtype=torch.float32, side=side),
        torch.tensor([5.0, 700.0]),
        torch.tensor([0.9, 0.2], dtype=torch.float64),
        prompts(2, dtype=torch.float32, sdxl=sdxl),
    )


def agree(mine, torchs, allowed):
    for one, other in ((mine.eps, torchs.eps), (mine.x0, torchs.x0)):
        assert (one - other).abs().max() < allowed * other.abs().max()


@slow
def test_sd2_with_v_prediction_is_torchs(tiny_model, latents, prompts, tmp_path):
    model = tiny_model("sd2")
    record = export_onnx(model, FIXED, tmp_path)
    assert set(record.errors) == {
        "unet", "unet-plain", "vae_encoder", "vae_decoder", "text_encoder",
    }  # fmt: skip
    assert max(record.errors.values()) < 1e-4
    assert record.prediction_type == "v_prediction"
    query = question(latents, prompts)
    mine = denoiser_of("onnx", model, tmp_path, pytest.fail).answer(query)
    agree(mine, TorchDenoiser(model.unet, "v_prediction").answer(query), 1e-4)


@slow
def test_sdxl_in_float16_and_in_sizes_that_vary_is_torchs(tiny_model, latents, prompts, tmp_path):
    model = tiny_model("sdxl", "float16")
    profile = ShapeProfile(Span(1, 4), Span(16, 32), Span(16, 32))
    record = export_onnx(model, profile, tmp_path)
    assert {"text_encoder", "text_encoder_2", "unet.onnx"} <= {*record.errors, *record.files}
    own = denoiser_of("onnx", model, tmp_path, pytest.fail)
    torchs = denoiser_of("torch", model, None, lambda: TorchDenoiser(model.unet, "epsilon"))
    for side in (8, 12, 16):
        query = question(latents, prompts, sdxl=True, side=side)
        agree(own.answer(query), torchs.answer(query), 2e-2)


@slow
def test_bfloat16_is_typed_whole_close_to_torch_and_refused_on_a_cpu(tiny_model, tmp_path):
    model = tiny_model("sd1", "bfloat16")
    record = export_onnx(model, FIXED, tmp_path)
    assert max(record.errors[name] for name in ("unet", "unet-plain")) < 5e-2
    graph = onnx.load(tmp_path / "unet.onnx", load_external_data=False)
    (opset,) = graph.opset_import
    assert opset.version == 22
    held = {each.data_type for each in graph.graph.initializer}
    assert onnx.TensorProto.BFLOAT16 in held
    assert not [path for path in tmp_path.iterdir() if "twin" in path.name]
    with pytest.raises(BackendError, match="no kernels on a CPU; export in float32 or float16"):
        denoiser_of("onnx", model, tmp_path, pytest.fail)
    with pytest.raises(BackendError, match="ONNX Runtime can't run"):
        OnnxNetwork(tmp_path / "unet.onnx", torch.device("cpu"))
    if find_spec("tensorrt_rtx") is not None:
        options = BuildOptions(sm=("89",), buckets=(2,))
        assert build(tmp_path / "unet.onnx", FIXED, 2, api_of("tensorrt_rtx"), options)


def test_a_graph_whose_types_contradict_is_refused(tmp_path):
    helper, half, single = onnx.helper, onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["c"])],
        "mixed",
        [helper.make_tensor_value_info(*each, [2]) for each in (("a", half), ("b", single))],
        [helper.make_tensor_value_info("c", single, [2])],
    )
    onnx.save(helper.make_model(graph), tmp_path / "mixed.onnx")
    with pytest.raises(BackendError, match=r"the types in mixed\.onnx contradict"):
        require_typed(tmp_path / "mixed.onnx", tmp_path)


def test_a_format_that_runtimes_do_not_take_is_refused(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="dtype=float64 is not exported; accepted are float32"):
        export_onnx(tiny_model("sd1", "float64"), FIXED, tmp_path)
    assert not list(tmp_path.iterdir())
