"""Single-file checkpoints, in the names they are trained with, against diffusers' own conversion
and against the published architectures.
"""

import logging
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pivotal.cli import main
from pivotal.errors import ModelError
from pivotal.model import single_file as single_file_module
from pivotal.model.families import FAMILIES, warn_if_few_steps
from pivotal.model.ldm_names import autoencoder_name, open_clip_name, unet_name
from pivotal.model.load import load
from pivotal.model.networks import empty_autoencoder, empty_text_encoder, empty_unet
from pivotal.model.safetensors_header import Entry, Header
from pivotal.model.single_file import _others
from pivotal.model.single_file_config import UNET, open_clip_config, under, unet_config

FAMILY_NAMES = ("sd1", "sd2", "sdxl")
CONV_IN = UNET + "input_blocks.0.0.weight"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def changed(path, folder, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, folder / path.name)
    return folder / path.name


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_weight_is_where_diffusers_conversion_puts_it(single_file, vocabulary_folder, family):
    path = single_file(family)
    model = load(path, family=family, tokenizer=vocabulary_folder)
    stored = {name: tensor.float() for name, tensor in load_file(path).items()}
    unet, vae = model.unet.unet, model.autoencoder.vae
    pairs = [
        (unet, convert_ldm_unet_checkpoint(dict(stored), unet.config)),
        (vae, convert_ldm_vae_checkpoint(dict(stored), vae.config)),
    ]
    prefix = {"sd2": "cond_stage_model.model.", "sdxl": "conditioner.embedders.1.model."}
    if family in prefix:
        encoder = model.text.encoders[-1]
        theirs = convert_open_clip_checkpoint(encoder, dict(stored), prefix=prefix[family])
        pairs.append((encoder, theirs))
    for network, theirs in pairs:
        ours = network.state_dict()
        for name, tensor in ours.items():
            other = theirs.get(name, theirs.get(f"text_model.{name}"))
            assert torch.equal(tensor, other), name
    assert unet.config.addition_time_embed_dim == (16 if family == "sdxl" else None)


def test_transformers_own_names_are_kept(single_file, vocabulary_folder):
    for family, prefix in (("sd1", "cond_stage_model."), ("sdxl", "conditioner.embedders.0.")):
        path = single_file(family)
        encoder = load(path, family=family, tokenizer=vocabulary_folder).text.encoders[0]
        stored = {
            name.removeprefix(f"{prefix}transformer.text_model."): tensor.float()
            for name, tensor in load_file(path).items()
        }
        for name, tensor in encoder.state_dict().items():
            assert torch.equal(tensor, stored[name.removeprefix("text_model.")])


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_published_files_give_the_published_architectures(published_shapes, family):
    """Shapes alone: every weight of the true networks has one place in the true file."""
    shapes = published_shapes(family)
    published = FAMILIES[family].architecture
    found = unet_config(under(shapes, UNET))
    expected = empty_unet(published.unet)
    derived = empty_unet(found | {"addition_time_embed_dim": 256}).config
    for key in found:
        if key == "transformer_layers_per_block" and family == "sdxl":
            assert tuple(derived[key]) == (1, 2, 10)
        elif isinstance(derived[key], int | str | None):
            assert derived[key] == expected.config[key], key
        else:
            assert list(derived[key]) == list(expected.config[key]), key
    header = Header(b"", {n: Entry("F16", s, 0, 0) for n, s in shapes.items()}, {})
    configs, prefixes = _others(header, FAMILIES[family], published)
    assert configs["vae"] == {k: v for k, v in published.autoencoder.items() if k != "sample_size"}
    encoders = [configs[name] for name in ("text_encoder", "text_encoder_2") if name in configs]
    assert encoders == [dict(each) for each in published.text_encoders]
    networks = {"unet": (expected, lambda name: unet_name(name, expected.config))}
    vae = empty_autoencoder(published.autoencoder)
    networks["vae"] = (vae, lambda name: autoencoder_name(name, 4))
    for number, config in enumerate(encoders):
        name = ("text_encoder", "text_encoder_2")[number]
        fused = prefixes[name].endswith(".model.")
        networks[name] = (
            empty_text_encoder(config, projected=number == 1),
            (lambda each: open_clip_name(each)[0])
            if fused
            else (lambda each: f"text_model.{each.removeprefix('text_model.')}"),
        )
    used = set()
    for component, (network, translated) in networks.items():
        prefix = UNET if component == "unet" else prefixes[component]
        for name, tensor in network.state_dict().items():
            stored = prefix + translated(name)
            used.add(stored)
            thirds = 3 if "in_proj" in stored else 1
            assert torch.Size(shapes[stored]).numel() == thirds * tensor.numel(), name
    left = {name for name in shapes if name not in used}
    last = "cond_stage_model.model.transformer.resblocks.23."
    alone = [n for n in left if not n.startswith(last) and "logit" not in n]
    assert alone == (["cond_stage_model.model.text_projection"] if family == "sd2" else [])


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_single_file_runs_from_text_to_picture(single_file, vocabulary_folder, family):
    model = load(single_file(family), family=family, tokenizer=vocabulary_folder)
    conditioning = model.text.encode(["a red cat", ""])
    added = (conditioning.pooled, conditioning.time_ids)
    with torch.no_grad():
        prediction, _ = model.unet(
            torch.randn(2, 4, 16, 16), torch.full((2,), 500.0), conditioning.hidden_states, *added
        )
        picture = model.autoencoder.decode(prediction[:1])
    ends = [each.tokens("cat").ids[-1] for each in model.text.tokenizers]  # as published
    end, first = model.text.tokenizers[0].end, 0
    assert ends == {"sd1": [end], "sd2": [first], "sdxl": [end, first]}[family]
    assert torch.isfinite(picture).all()
    assert picture.shape == (1, 3, 32, 32)
    assert (prediction[0] - prediction[1]).abs().max() > 0


def test_what_a_file_predicts(published_shapes, tmp_path, caplog):
    def said(family, asked=None, metadata=None, **more):
        """The schedule and the side of a file that holds the published names, and no bytes."""
        path = tmp_path / "one.safetensors"
        save_file(more, path, metadata)
        read = single_file_module.read_header(path)
        entries = {n: Entry("F16", s, 0, 0) for n, s in published_shapes(family).items()}
        whole = replace(read, tensors={**entries, **read.tensors})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(single_file_module, "read_header", lambda _: whole)
            found = single_file_module.open_single_file(path, None, asked).configs
        return found["scheduler"]["prediction_type"], found["unet"]["sample_size"]

    mark = torch.zeros(1)
    assert said("sd2", x=mark) == ("v_prediction", 96)
    assert "does not say what it predicts; v_prediction is assumed" in caplog.text
    caplog.clear()
    assert said("sd2", global_step=torch.tensor(875_000)) == ("epsilon", 64)
    assert said("sd2", global_step=torch.tensor([140_000])) == ("v_prediction", 96)
    assert said("sd2", asked="epsilon", x=mark) == ("epsilon", 64)
    assert said("sd2", None, {"modelspec.prediction_type": "epsilon"}, x=mark) == ("epsilon", 64)
    assert said("sdxl", v_pred=mark) == ("v_prediction", 128)
    assert said("sdxl", x=mark) == ("epsilon", 128)
    assert said("sd1", x=mark) == ("epsilon", 64)
    assert not caplog.records


def test_a_tower_written_without_its_last_layer_keeps_the_others(published_shapes):
    """diffusers' own script writes SD 2.x's 23 layers where the published file has 24."""
    published = FAMILIES["sd2"].architecture.text_encoders[0]
    whole = under(published_shapes("sd2"), "cond_stage_model.model.")
    last = "transformer.resblocks.23."
    written = {name: shape for name, shape in whole.items() if not name.startswith(last)}
    assert len(written) < len(whole)
    for shapes in (whole, written):
        assert open_clip_config(shapes, published, projected=False)["num_hidden_layers"] == 23


def test_zero_terminal_snr_is_the_files_to_say(single_file, vocabulary_folder, tmp_path):
    marks = {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}
    path = changed(single_file("sd1"), tmp_path, lambda t: t.update(marks))
    config = load(path, family="sd1", tokenizer=vocabulary_folder).levels.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)


@pytest.mark.slow
def test_the_fingerprint_is_of_the_content_and_of_how_it_is_read(
    single_file, vocabulary_folder, tmp_path
):
    def fingerprint(path, **more):
        return load(path, family="sd1", tokenizer=vocabulary_folder, **more).fingerprint

    path = single_file("sd1")
    same = changed(path, tmp_path, lambda t: None)
    assert fingerprint(same) == fingerprint(path)
    other = changed(path, tmp_path, lambda t: t[CONV_IN].add_(1))
    assert fingerprint(other) != fingerprint(path)
    assert fingerprint(path, prediction_type="v_prediction") != fingerprint(path)


def without(start):
    def change(tensors):
        for name in [each for each in tensors if each.startswith(start)]:
            del tensors[name]

    return change


def renamed(start, other):
    def change(tensors):
        for name in [each for each in tensors if each.startswith(start)]:
            tensors[other + name.removeprefix(start)] = tensors.pop(name)

    return change


def setting(name, *shape, dtype=torch.float16):
    return lambda tensors: tensors.update({name: torch.zeros(shape, dtype=dtype)})


REFUSED = {
    "inpainting": (setting(CONV_IN, 32, 9, 3, 3), "9 input channels, so it is an inpainting"),
    "pix2pix": (setting(CONV_IN, 32, 8, 3, 3), "InstructPix2Pix"),
    "depth": (setting(CONV_IN, 32, 5, 3, 3), "depth model"),
    "distilled": (setting(UNET + "time_embed.cond_proj.weight", 32, 64), "distilled to few steps"),
    "upscaler": (setting(UNET + "label_emb.weight", 1000, 128), "num_class_embeds=1000"),
    "refiner": (
        renamed("cond_stage_model.transformer.", "conditioner.embedders.0.model."),
        "SDXL's refiner",
    ),
    "EDM": (setting("edm_mean", 4), "EDM's noise levels"),
    "Flux": (renamed(UNET + "input_blocks", UNET + "double_blocks"), "it is Flux"),
    "SD 3": (renamed(UNET + "input_blocks", UNET + "joint_blocks"), "it is Stable Diffusion 3"),
    "a VAE": (lambda t: [without("model")(t), renamed("first_stage_model.", "")(t)], "vae= takes"),
    "no VAE": (without("first_stage_model."), "has no autoencoder; say vae="),
    "no text": (without("cond_stage_model."), "it has no text_encoder"),
    "half a VAE": (without("first_stage_model.decoder.up"), "vae lacks"),
    "no encoder": (without("first_stage_model.encoder"), r"lacks encoder\.down\.0"),
    "a hole": (without(UNET + "input_blocks.1."), r"lacks input_blocks\.1"),
    "no middle": (without(UNET + "middle_block"), "as no Stable Diffusion model has"),
    "no output": (without(UNET + "output_blocks.0"), r"unet lacks .* up_blocks\.0"),
    "quantised": (setting(CONV_IN, 32, 4, 3, 3, dtype=torch.int8), "quantised"),
    "an unknown layer": (
        setting(UNET + "input_blocks.1.9.weight", 4),
        r"unet is of a kind unknown to pivotal: 1 of its weights have no place .*blocks\.1\.9",
    ),
    "a wrong shape": (setting(UNET + "out.0.weight", 7), r"out\.0\.weight has shape \[7\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_model_of_ours_is_one_sentence(single_file, vocabulary_folder, tmp_path, name):
    change, sentence = REFUSED[name]
    path = changed(single_file("sd1"), tmp_path, change)
    with pytest.raises(ModelError, match=sentence) as caught:
        load(path, family="sd1", tokenizer=vocabulary_folder)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_the_training_averages_are_left_alone(single_file, vocabulary_folder, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    more = {"model_ema.diffusion_modelout0weight": torch.zeros(2), "betas": torch.zeros(1000)}
    path = changed(single_file("sd2"), tmp_path, lambda t: t.update(more))
    load(path, family="sd2", tokenizer=vocabulary_folder, prediction_type="epsilon")
    assert not caplog.records


def test_a_name_that_says_few_steps_is_a_warning(single_file, tmp_path, caplog):
    path = single_file("sd1")
    single_file_module.open_single_file(path, FAMILIES["sd1"])
    assert not caplog.records
    save_file(load_file(path), tmp_path / "a.safetensors", {"modelspec.title": "My Turbo"})
    single_file_module.open_single_file(tmp_path / "a.safetensors", FAMILIES["sd1"])
    assert "is called 'Turbo': a model distilled to few steps" in caplog.text


@pytest.mark.parametrize(
    ("name", "few"),
    [
        ("sd_xl_turbo_1.0_fp16", True),
        ("juggernautXL_v9Rdphoto2Lightning", True),
        ("Hyper-SDXL-8steps", True),
        ("LCM_Dreamshaper_v7", True),
        ("sdxl_dmd2_4step", True),
        ("hyperrealism_v3", False),
        ("calcmix", False),
        ("admdream", False),
    ],
)
def test_only_whole_names_of_few_step_models_are_warned_of(name, few, caplog):
    warn_if_few_steps("a model", name)
    assert ("a model is called" in caplog.text) == few


def test_a_vocabulary_of_another_size_is_refused(single_file, tmp_path):
    with pytest.raises(ModelError, match=r"49408 tokens, and text_encoder has embeddings for \d+"):
        load(single_file("sd1"), family="sd1")
    with pytest.raises(ModelError, match="tokenizer="):
        load(single_file("sd1"), family="sd1")
    with pytest.raises(ModelError, match=r"no vocab\.json"):
        load(single_file("sd1"), family="sd1", tokenizer=tmp_path)


def test_without_any_vocabulary_the_sentence_says_what_to_supply(single_file, monkeypatch):
    monkeypatch.setattr("pivotal.model.vocabulary.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"vocab\.json and merges\.txt.*open_clip_torch"):
        load(single_file("sd1"), family="sd1")


def test_arguments_that_mean_nothing_are_refused(single_file, vocabulary_folder):
    path = single_file("sd1")
    for arguments in ({"variant": "fp16"}, {"revision": "main"}):
        with pytest.raises(ValueError, match="means nothing"):
            load(path, family="sd1", tokenizer=vocabulary_folder, **arguments)
    with pytest.raises(ValueError, match=r"tokenizer=.*means nothing for 'shapes'"):
        load("shapes", tokenizer=vocabulary_folder)
    with pytest.raises(ValueError, match="prediction_type='x' is unknown; accepted are epsilon"):
        load(path, prediction_type="x")
    with pytest.raises(ModelError, match="cross_attention_dim=64"):
        load(path)


def test_the_tiny_files_hold_what_the_real_ones_hold(single_file, published_shapes):
    """The same kinds of names: numbers apart, each of the tiny file's is in the published one."""

    def kinds(names):
        return {"".join("#" if c.isdigit() else c for c in name) for name in names}

    for family in FAMILY_NAMES:
        with safe_open(single_file(family), "pt") as file:
            assert kinds(file.keys()) <= kinds(published_shapes(family)), family


@pytest.mark.slow
def test_the_command_line_inverts_and_edits_with_a_single_file(
    single_file, vocabulary_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("PIVOTAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    save_file({"<toy>": torch.randn(2, 64)}, "toy.safetensors")
    module = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
    factors = {"lora_A": torch.ones(2, 64), "lora_B": torch.ones(64, 2)}
    save_file({f"unet.{module}.{k}.weight": v for k, v in factors.items()}, "ink.safetensors")
    Image.new("RGB", (40, 40), (200, 30, 30)).save("photo.png")

    def run(*words):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--family", "sd1", "--tokenizer", str(vocabulary_folder), *added])
        return stop.value.code or 0

    added = ["--lora", "ink.safetensors:0.5", "--embedding", "toy.safetensors"]
    prompt = ("--prompt", "a red <toy>", "--method", "ddim", "--steps", "2", "--size", "32x32")
    assert run("invert", "photo.png", *prompt, "--model", str(single_file("sd1"))) == 0
    edit = ("edit", "photo.safetensors", "--target", "a blue <toy>", "--blend", "<toy>")
    assert run(*edit) == 0
    assert Path("photo-edit.png").is_file()
    added = ["--lora", "ink.safetensors:0.6", "--embedding", "toy.safetensors"]
    assert run(*edit) == 2
