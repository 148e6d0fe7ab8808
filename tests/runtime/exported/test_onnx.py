"""ONNX files and the denoiser on them, against the torch UNet that they were made from."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import onnx
import onnxruntime
import pytest
import torch

from pivotal.backends import BACKENDS
from pivotal.control import NoEdit
from pivotal.driver import drive, require
from pivotal.errors import BackendError, EditWithoutEffectError
from pivotal.inversion import ddim
from pivotal.query import Denoise, NoiseGradient
from pivotal.runtime.buckets import Buckets
from pivotal.runtime.exported import backend
from pivotal.runtime.exported.comparison import answers, compare
from pivotal.runtime.exported.denoiser import HybridDenoiser
from pivotal.runtime.exported.onnx_network import OnnxNetwork
from pivotal.runtime.exported.onnx_placement import HOST, RECORDED, computed_on_the_host
from pivotal.runtime.exported.probing import probe
from pivotal.runtime.exported.record import read_record
from pivotal.runtime.precision import Precision
from pivotal.runtime.probe import probe_routes
from pivotal.runtime.torch_denoiser import TorchDenoiser

TOLERANCE = 1e-4  # float32, of values of order 1


def question(small, latents, prompts, rows, routes=None):
    timesteps = torch.linspace(3.5, 981, rows)  # each row its own, one between integers
    alpha_bars = torch.linspace(0.9, 0.1, rows, dtype=torch.float64)
    return Denoise(
        latents(rows, dtype=torch.float32),
        timesteps,
        alpha_bars,
        prompts(rows, dtype=torch.float32),
        routes,
    )


def far(one, other):
    return (one - other).abs().max().item()


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_answers_without_routes_are_torchs(small, latents, prompts, rows):
    query = question(small, latents, prompts, rows)
    mine, torchs = small.onnx().answer(query), small.torch().answer(query)
    assert mine.eps.shape == torchs.eps.shape
    assert far(mine.eps, torchs.eps) < TOLERANCE
    assert far(mine.x0, torchs.x0) < TOLERANCE * 10  # eps over the smallest signal
    assert mine.word_maps is None


@pytest.mark.parametrize("columns", [1, 3, 16])
def test_answers_with_routes_and_word_maps_are_torchs(
    small, latents, prompts, swap_routes, columns
):
    routes = swap_routes(small.unet, columns=columns)
    query = question(small, latents, prompts, 2, routes)
    mine, torchs = small.onnx().answer(query), small.torch().answer(query)
    assert far(mine.eps, torchs.eps) < TOLERANCE
    assert mine.word_maps.shape == torchs.word_maps.shape
    assert far(mine.word_maps, torchs.word_maps) < TOLERANCE
    plain = small.onnx().answer(question(small, latents, prompts, 2))
    assert far(plain.eps[1], mine.eps[1]) > 100 * TOLERANCE  # the route acts


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_what_a_network_predicts_is_read_as_torch_reads_it(small, latents, prompts, kind):
    query = question(small, latents, prompts, 3)
    mine = replace(small, record=replace(small.record, prediction_type=kind)).exported()
    found, torchs = mine.answer(query), TorchDenoiser(small.unet, kind).answer(query)
    assert far(found.eps, torchs.eps) < TOLERANCE * torchs.eps.abs().max()
    assert far(found.x0, torchs.x0) < TOLERANCE * torchs.x0.abs().max()
    eps = small.exported().answer(query).eps
    assert far(found.eps, eps) > 100 * TOLERANCE


def test_more_rows_than_the_profile_are_answered_in_batches(small, latents, prompts):
    query = question(small, latents, prompts, 11)
    assert far(small.onnx().answer(query).eps, small.torch().answer(query).eps) < TOLERANCE


def test_every_layer_follows_its_route(small, latents, prompts):
    changes = probe_routes(
        small.onnx(),
        small.unet.layers,
        prompts(2, dtype=torch.float32),
        latents(2, dtype=torch.float32),
        max_rows=4,
    )
    assert set(changes) == {layer.name for layer in small.unet.layers}


def test_inversion_and_guided_sampling_end_where_torchs_do(small, latents, prompts, levels):
    schedule = levels.schedule(4)
    start = latents(dtype=torch.float32)
    cond, null = (prompts(seed=seed, dtype=torch.float32) for seed in (1, 2))
    found = []
    for denoiser in (small.torch(), small.onnx()):
        inverted = drive(ddim.invert(schedule, start, cond, null, ddim.DDIMOptions()), denoiser)
        back = drive(ddim.replay(schedule, inverted, cond, null, 4.0, NoEdit()), denoiser)
        found.append((inverted.noise, back))
    for torchs, mine in zip(*found, strict=True):
        assert far(mine, torchs) < TOLERANCE * torchs.abs().max()
    (_, torchs), (_, mine) = found
    signal = torchs.square().mean() / (torchs - mine).square().mean()
    assert 10 * signal.log10() > 80  # decibels


def test_gradients_are_refused_before_anything_runs(small, latents, prompts):
    with pytest.raises(BackendError, match="the onnx backend can't answer NoiseGradient"):
        require(small.onnx(), [Denoise, NoiseGradient], "null-text")


def test_what_an_export_answers_is_what_methods_list_for_both_kinds(small):
    assert small.onnx().answers == BACKENDS["onnx"] == BACKENDS["tensorrt"]
    assert set(BACKENDS) == {name for name in backend.BACKENDS if "+" not in name}


def test_a_hybrid_gives_gradients_to_torch_and_the_rest_to_the_export(
    small, latents, prompts, recording
):
    fast, slow = recording(small.onnx()), recording(small.torch())
    hybrid = HybridDenoiser(fast, slow)
    require(hybrid, [Denoise, NoiseGradient], "null-text")
    query = question(small, latents, prompts, 2)
    hybrid.answer(query)
    gradient = hybrid.answer(
        NoiseGradient(
            query.latents,
            query.timesteps,
            query.alpha_bars,
            query.conditioning,
            torch.ones(2),
            torch.zeros_like(query.latents),
        )
    )
    assert gradient.gradient.abs().max() > 0
    assert [type(each) for each in fast.batches] == [Denoise]
    assert [type(each) for each in slow.batches] == [NoiseGradient]


def test_a_graph_holds_standard_operators_used_inputs_and_nothing_of_this_machine(small):
    for part in small.parts:
        path = small.folder / f"{part.name}.onnx"
        graph = onnx.load(path, load_external_data=False)
        assert {node.domain for node in graph.graph.node} <= {""}
        used = {name for node in graph.graph.node for name in node.input}
        assert {each.name for each in graph.graph.input} <= used
        assert [each.name for each in graph.graph.output] == list(part.outputs)
        assert {"pivotal.model"} == {each.key for each in graph.metadata_props}
        assert b".py" not in path.read_bytes()


def test_both_graphs_share_one_file_of_weights(small):
    names = {path.name for path in small.folder.iterdir()}
    assert names == {"unet.onnx", "unet-plain.onnx", "unet.weights", "export.json"}
    weights = sum(p.numel() * 4 for p in small.unet.parameters())
    assert (
        weights * 0.7 < (small.folder / "unet.weights").stat().st_size <= weights * 1.05
    )  # small constants stay inside


def test_a_file_that_differs_from_torch_is_not_kept(small):
    routed = small.parts[0]
    network = OnnxNetwork(small.folder / "unet.onnx", torch.device("cpu"), threads=1)
    changed = copy.deepcopy(routed.module)
    with torch.no_grad():
        next(changed.parameters()).mul_(1.01)
    profile = small.record.profile
    found = answers(routed, network, profile)
    assert compare(routed, found, profile) < TOLERANCE
    with pytest.raises(BackendError, match=r"differs from torch by .* it is not kept"):
        compare(replace(routed, module=changed), found, profile)


def test_the_probe_of_a_build_names_the_layer_that_ignores_its_route(small):
    changes = probe(small.model, small.networks[0], small.record)
    assert set(changes) == {layer.name for layer in small.unet.layers}
    with pytest.raises(EditWithoutEffectError, match=f"1 of 4 .* route: {small.deaf_layer}$"):
        probe(small.model, small.deaf, small.record)


def test_what_a_session_leaves_to_the_cpu_is_counted_without_its_shapes(small):
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry(RECORDED, "1")
    path = small.folder / "unet.onnx"
    session = onnxruntime.InferenceSession(path, settings, providers=[HOST])
    found = computed_on_the_host(session.get_provider_graph_assignment_info(), path)
    graph = onnx.load(path, load_external_data=False).graph
    assert found["Conv"] == sum(node.op_type == "Conv" for node in graph.node) > 0
    assert found["MatMul"] > 0
    assert "Shape" not in found
    elsewhere = [
        SimpleNamespace(ep_name="CUDAExecutionProvider", get_nodes=each.get_nodes)
        for each in session.get_provider_graph_assignment_info()
    ]
    assert not computed_on_the_host(elsewhere, path)


def test_a_picture_of_another_size_is_refused_with_the_command_that_exports_it(
    small, latents, prompts
):
    query = Denoise(
        latents(dtype=torch.float32, side=16),
        torch.tensor([5.0]),
        torch.tensor([0.5], dtype=torch.float64),
        prompts(dtype=torch.float32),
    )
    with pytest.raises(ValueError, match=r"height=32 is outside .* `pivotal export onnx --model"):
        small.onnx().answer(query)


def test_more_word_columns_than_the_graph_holds_are_refused(small, latents, prompts, swap_routes):
    query = question(small, latents, prompts, 2, swap_routes(small.unet, columns=17))
    with pytest.raises(ValueError, match="17 word columns"):
        small.exported().answer(query)


def test_a_record_comes_back_as_it_was_written(small):
    assert read_record(small.folder) == small.record


def test_a_changed_or_foreign_export_is_refused(small, tmp_path):
    (tmp_path / "unet.onnx").write_bytes((small.folder / "unet.onnx").read_bytes() + b"\0")
    with pytest.raises(BackendError, match="not the file that was exported"):
        small.record.require_intact(tmp_path, "unet.onnx")
    with pytest.raises(BackendError, match="is missing; export again: `pivotal export onnx"):
        small.record.require_intact(tmp_path, "unet-plain.onnx")
    with pytest.raises(BackendError, match="holds no export that can be read"):
        read_record(tmp_path)


def test_an_export_of_other_weights_or_arithmetic_is_refused_with_what_to_do(small, tmp_path):
    def model(**changed):
        own = {
            "name": "random:sd1",
            "fingerprint": small.model.fingerprint,
            "dtype": torch.float32,
            "precision": Precision(),
            "additions": [],
        }
        return SimpleNamespace(**{**own, **changed})

    small.record.require_model(model(), tmp_path)
    sentence = (
        r"exported from model 'random:sd1' \(\w+\), not 'random:sd1' with vae fine, lora a:0.8"
    )
    worn = model(fingerprint="0" * 64, additions=["vae fine", "lora a:0.8"])
    with pytest.raises(BackendError, match=rf"{sentence}.* --vae fine --lora a:0.8 --rows 1:6"):
        small.record.require_model(worn, tmp_path)
    with pytest.raises(BackendError, match="holds float32 networks"):
        small.record.require_model(model(dtype=torch.float16), tmp_path)
    with pytest.raises(BackendError, match="computes in float32, and tf32 is torch's own"):
        small.record.require_model(model(precision=Precision(arithmetic="tf32")), tmp_path)


def test_a_device_without_a_provider_is_refused_not_replaced_by_the_cpu(small):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has CUDA here")
    with pytest.raises(BackendError, match="no CUDAExecutionProvider here"):
        OnnxNetwork(small.folder / "unet.onnx", torch.device("cuda"))


def test_a_file_whose_weights_are_cut_off_is_refused_in_one_sentence(small, tmp_path, capfd):
    (tmp_path / "unet.onnx").write_bytes((small.folder / "unet.onnx").read_bytes())
    (tmp_path / "unet.weights").write_bytes((small.folder / "unet.weights").read_bytes()[:1000])
    with pytest.raises(BackendError, match=r"ONNX Runtime can't run unet\.onnx: .*out of bounds"):
        OnnxNetwork(tmp_path / "unet.onnx", torch.device("cpu"))
    assert not capfd.readouterr().err  # ONNX Runtime's own words


def test_buckets_of_an_export_are_its_rows(small):
    assert small.onnx().buckets == Buckets((1, 2, 3, 4, 5, 6), 16)
