import json
import logging
import shutil
import socket
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

import pivotal.model
from pivotal.errors import ModelError
from pivotal.model.families import FAMILIES
from pivotal.model.load import load

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_sd_folder_gives_the_network_that_diffusers_loads(sd_folder):
    model = load(sd_folder, family="sd1")
    theirs = StableDiffusionPipeline.from_pretrained(
        sd_folder, local_files_only=True, safety_checker=None
    ).unet
    latents, text = torch.randn(2, 4, 16, 12), torch.randn(2, 20, 32)
    timesteps = torch.tensor([3.0, 977.0])
    with torch.no_grad():
        expected = theirs(latents, timesteps, text).sample
        prediction, word_maps = model.unet(latents, timesteps, text)
    torch.testing.assert_close(prediction, expected)
    assert word_maps is None
    assert model.default_size == (32, 32)
    assert model.levels.config.steps_offset == 1
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())


def test_a_sdxl_folder_gives_the_network_that_diffusers_loads(sdxl_folder):
    model = load(sdxl_folder, family="sdxl")
    theirs = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, local_files_only=True).unet
    latents, timesteps = torch.randn(2, 4, 16, 16), torch.tensor([500.0, 20.0])
    text, pooled, time_ids = torch.randn(2, 20, 80), torch.randn(2, 48), torch.rand(2, 6) * 32
    with torch.no_grad():
        added = {"text_embeds": pooled, "time_ids": time_ids}
        expected = theirs(latents, timesteps, text, added_cond_kwargs=added).sample
        prediction, _ = model.unet(latents, timesteps, text, pooled, time_ids)
    torch.testing.assert_close(prediction, expected)


def test_the_bundled_model_loads_in_the_asked_dtype(no_network):
    model = load("shapes", dtype=torch.bfloat16)
    assert model.family == FAMILIES["shapes"]
    assert {parameter.dtype for parameter in model.unet.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.autoencoder.vae.parameters()} == {torch.float32}
    assert model.text.encode(["a red circle"]).hidden_states.dtype == torch.float32
    assert model.autoencoder.scale == model.family.latent_scale


def test_no_socket_is_opened_and_stdout_stays_empty(sdxl_folder, no_network, capfd):
    load(sdxl_folder, family="sdxl")
    load(str(sdxl_folder), family="sdxl", variant="fp16", local_files_only=True)
    assert capfd.readouterr().out == ""


def test_the_variant_is_chosen_and_logged(sd_folder, sd_copy, caplog):
    caplog.set_level(logging.INFO, logger="pivotal")
    plain = load(sd_folder, family="sd1")
    half = load(sd_folder, family="sd1", variant="fp16")
    assert "diffusion_pytorch_model.fp16.safetensors" in caplog.text
    exact, rounded = plain.unet.state_dict(), half.unet.state_dict()
    assert all(torch.equal(rounded[name], exact[name].half().float()) for name in exact)
    for path in sd_copy.glob("*/*.safetensors"):
        if ".fp16." not in path.name:
            path.unlink()
    only = load(sd_copy, family="sd1")  # the only one there
    assert only.fingerprint == half.fingerprint


def test_old_names_of_weights_are_understood(sd_folder, sd_copy):
    """As the published SD 1.x files have them."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    path = sd_copy / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): value for key, value in tensors.items()}
    assert any("proj_attn" in key for key in tensors)
    save_file(tensors, path)
    path = sd_copy / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in load_file(path).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(20)[None]
    save_file(tensors, path)
    expected, model = load(sd_folder, family="sd1"), load(sd_copy, family="sd1")
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(model.autoencoder.encode(images), expected.autoencoder.encode(images))
    hidden = [each.text.encode(["a cat"]).hidden_states for each in (model, expected)]
    assert torch.equal(*hidden)


def test_sharded_weights_are_read_whole(sd_folder, sd_copy):
    tensors = load_file(sd_copy / UNET)
    names = list(tensors)
    (sd_copy / UNET).unlink()
    for index, part in enumerate((names[::2], names[1::2]), start=1):
        shard = sd_copy / f"unet/diffusion_pytorch_model-0000{index}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, shard)
    found, expected = (load(f, family="sd1").unet.state_dict() for f in (sd_copy, sd_folder))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    shard.unlink()
    with pytest.raises(ModelError, match="1 of its 2 weight files"):
        load(sd_copy, family="sd1")


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def pickle_only(root):
    for path in (root / "unet").glob("*.safetensors"):
        path.unlink()
    (root / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")


def renamed_pickle(root):
    torch.save({"a": torch.zeros(3)}, root / UNET)


def truncated(root, keep):
    (root / UNET).write_bytes((root / UNET).read_bytes()[:keep])


def rewritten(root, change):
    tensors = load_file(root / UNET)
    change(tensors)
    save_file(tensors, root / UNET)


def astray(root, offsets):
    entry = {"dtype": "F32", "shape": [1], "data_offsets": offsets}
    header = json.dumps({"conv_in.bias": entry}).encode()
    (root / UNET).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


DAMAGES = {
    "no index": (lambda r: remove(r / "model_index.json"), r"no model_index\.json"),
    "no unet": (lambda r: remove(r / "unet"), "no unet/ folder"),
    "no scheduler": (lambda r: remove(r / "scheduler"), "no scheduler/ folder"),
    "no tokenizer": (lambda r: remove(r / "tokenizer"), "no tokenizer/ folder"),
    "no vocabulary": (lambda r: remove(r / "tokenizer/vocab.json"), r"no vocab\.json"),
    "no config": (lambda r: remove(r / "vae/config.json"), r"vae/config\.json is missing"),
    "no weights": (lambda r: [p.unlink() for p in (r / "vae").glob("*.safe*")], "no weights"),
    "only pickles": (pickle_only, r"only pickled weights \(diffusion_pytorch_model\.bin\)"),
    "a renamed pickle": (renamed_pickle, "not a safetensors file"),
    "offsets astray": (lambda r: astray(r, [5, 3]), "damaged header"),
    "offsets that are text": (lambda r: astray(r, ["0", "4"]), "damaged header"),
    "three offsets": (lambda r: astray(r, [0, 2, 4]), "damaged header"),
    "no bytes": (lambda r: truncated(r, 0), "not a safetensors file"),
    "half a header": (lambda r: truncated(r, 100), "not a safetensors file"),
    "half the weights": (lambda r: truncated(r, -1000), "its header promises"),
    "bad JSON": (lambda r: (r / "unet/config.json").write_text("{"), "can't be read as JSON"),
    "a JSON list": (lambda r: (r / "unet/config.json").write_text("[]"), "an object is expected"),
    "a missing weight": (lambda r: rewritten(r, lambda t: t.pop("conv_in.bias")), "lacks 1 of"),
    "a wrong shape": (
        lambda r: rewritten(r, lambda t: t.update({"conv_in.bias": torch.zeros(3)})),
        r"conv_in\.bias has shape \[3\] where the config asks for \[16\]",
    ),
    "quantised": (
        lambda r: rewritten(r, lambda t: t.update({"conv_in.bias": torch.zeros(16).char()})),
        "quantised",
    ),
    "another pipeline": (
        lambda r: edit_json(r / "model_index.json", unet=["diffusers", "UNet3D"]),
        "names UNet3D as unet",
    ),
    "no unet named": (
        lambda r: edit_json(r / "model_index.json", unet=None, _class_name="FluxPipeline"),
        r"\(FluxPipeline\) names no unet",
    ),
    "an unknown schedule": (
        lambda r: edit_json(r / "scheduler/scheduler_config.json", beta_schedule="sigmoid"),
        "'sigmoid' is unknown",
    ),
    "few steps": (
        lambda r: edit_json(r / "scheduler/scheduler_config.json", _class_name="LCMScheduler"),
        "has LCMScheduler, so it is distilled to few steps",
    ),
    "a wrong width": (
        lambda r: edit_json(r / "unet/config.json", cross_attention_dim=48),
        "config asks for",
    ),
    "another network": (
        lambda r: edit_json(r / "unet/config.json", in_channels=9),
        "inpainting",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_missing_or_damaged_is_one_sentence(sd_copy, name):
    damage, sentence = DAMAGES[name]
    damage(sd_copy)
    with pytest.raises(ModelError, match=sentence) as caught:
        load(sd_copy, family="sd1")
    assert "\n" not in str(caught.value)


def test_weights_without_a_place_are_named_in_a_warning(sd_copy, caplog):
    rewritten(sd_copy, lambda tensors: tensors.update(surplus=torch.zeros(2)))
    load(sd_copy, family="sd1")
    assert "unet: 1 weights have no place in the network and are not used, first surplus" in (
        caplog.text
    )


def test_a_folder_that_is_called_as_few_step_models_are_is_a_warning(sd_copy, caplog):
    load(sd_copy.rename(sd_copy.with_name("tiny-sd-turbo")), family="sd1")
    assert "is called 'turbo': a model distilled to few steps" in caplog.text


def test_an_unknown_family_says_how_to_name_one(sd_folder):
    with pytest.raises(ModelError, match=r"cross_attention_dim=32.*family="):
        load(sd_folder)
    with pytest.raises(ModelError, match="takes no SDXL's time ids"):
        load(sd_folder, family="sdxl")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("./no/such/folder", "does not exist"),
        ("nosuchmodel", "does not exist.*'shapes'"),
        (Path("owner/name"), "does not exist"),
        ("a/b/c", "does not exist"),
        ("x" * 5000, "does not exist"),
        ("~nobody-of-this-name/model", "does not exist"),
        ("", "does not exist"),
    ],
)
def test_a_source_that_is_nowhere_is_named(source, sentence):
    with pytest.raises(ModelError, match=sentence):
        load(source)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_pickled_files_are_refused_by_name(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"x")
    with pytest.raises(ModelError, match=rf"model\{suffix} is pickled"):
        load(path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"source": "https://example.org/model"}, "is a URL"),
        ({"source": "random:sd9"}, "accepted are random:sd1, random:sd2, random:sdxl"),
        ({"source": "random:shapes"}, "accepted are random:sd1"),
        ({"source": "random:sd1:x"}, "random:sd1:7"),
        ({"source": "random:sd1", "variant": "fp16"}, "variant='fp16' means nothing"),
        ({"source": "random:sd1", "family": "sd1"}, "family='sd1' means nothing"),
        ({"source": "shapes", "variant": "fp16"}, "variant='fp16' means nothing"),
        ({"source": "shapes", "revision": "main"}, "revision='main' means nothing"),
        ({"source": "shapes", "dtype": "half"}, "dtype='half' is unknown; accepted are float32"),
        ({"source": "shapes", "dtype": torch.int8}, "torch.int8"),
        ({"source": "shapes", "device": "tpu"}, "'tpu'"),
        ({"source": "shapes", "device": "meta"}, "'meta' is not supported"),
        ({"source": "shapes", "device": "cuda:99"}, "'cuda:99' is absent"),
        ({"source": "shapes", "family": "sd9"}, "'sd9' is unknown"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        load(**arguments)


def test_a_local_folder_has_no_revision(sd_folder):
    with pytest.raises(ValueError, match="revision='main' means nothing"):
        load(sd_folder, revision="main")
    with pytest.raises(ModelError, match="no variant 'ema'; it has 'fp16', plain"):
        load(sd_folder, variant="ema", family="sd1")


def test_float16_runs_on_a_cpu(sd_folder):
    exact, half = load(sd_folder, family="sd1"), load(sd_folder, family="sd1", dtype="float16")
    latents, text = torch.randn(1, 4, 16, 16), torch.randn(1, 20, 32)
    with torch.no_grad():
        expected, _ = exact.unet(latents, torch.tensor([500.0]), text)
        found, _ = half.unet(latents.half(), torch.tensor([500.0]), text.half())
    torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=2e-2)


def test_public_names_are_there():
    for name in pivotal.model.__all__:
        assert getattr(pivotal.model, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pivotal.model.nothing


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_true_architectures_run_with_random_weights(family):
    model = load(f"random:{family}:3", dtype="bfloat16")
    prompts = ["a cat on a mat", "a dog on a mat"]
    conditioning = model.text.encode(prompts)
    latents = torch.randn(1, 4, 24, 16).expand(2, -1, -1, -1)
    added = [
        None if value is None else value.bfloat16()
        for value in (conditioning.pooled, conditioning.time_ids)
    ]
    with torch.no_grad():
        hidden_states = conditioning.hidden_states.bfloat16()
        eps, _ = model.unet(latents.bfloat16(), torch.full((2,), 500.0), hidden_states, *added)
    assert torch.isfinite(eps).all()
    assert (eps[0] - eps[1]).float().std() > 0.01


@pytest.mark.gpu
def test_a_model_loads_onto_a_gpu(sdxl_folder):
    model = load(sdxl_folder, family="sdxl", device="cuda", dtype="float16")
    conditioning = model.text.encode(["a cat"])
    latents = model.autoencoder.encode(torch.zeros(1, 3, 32, 32))
    assert conditioning.hidden_states.is_cuda
    assert latents.is_cuda
    exact = load(sdxl_folder, family="sdxl").text.encode(["a cat"]).hidden_states
    torch.testing.assert_close(conditioning.hidden_states.cpu(), exact, atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
def test_random_weights_are_the_same_on_a_gpu():
    here, there = (load("random:sd1", device=device, dtype="float16") for device in ("cpu", "cuda"))
    expected = here.unet.state_dict()
    for name, value in there.unet.state_dict().items():
        assert torch.equal(value.cpu(), expected[name])
