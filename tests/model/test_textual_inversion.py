"""Textual inversion, and other autoencoders, against diffusers' own pipelines."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from pivotal.errors import ModelError
from pivotal.model.load import load
from pivotal.model.textual_inversion import Embedding


def vectors(count, width, seed=3):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def written(tmp_path):
    def write(name="toy.safetensors", **tensors):
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    return write


def test_embeddings_are_those_that_diffusers_computes(sd_folder, written):
    path = written(**{"<cat-toy>": vectors(3, 32)})
    theirs = StableDiffusionPipeline.from_pretrained(
        sd_folder, local_files_only=True, safety_checker=None
    )
    theirs.load_textual_inversion(load_file(path), token="<cat-toy>")
    prompt = "a red <cat-toy> in the sin"
    expected, _ = theirs.encode_prompt(prompt, "cpu", 1, False)
    model = load(sd_folder, family="sd1", embedding=path)
    torch.testing.assert_close(model.text.encode([prompt]).hidden_states, expected)


def test_a_word_of_several_vectors_is_one_word(sd_folder, written):
    path = written(emb_params=vectors(3, 32))
    model = load(sd_folder, family="sd1", embedding=f"{path}:<Toy>")
    tokens = model.text.tokens("a <toy> cat")
    assert tokens.find("<toy>") == tokens.find("<TOY>") == (2, 3, 4)
    assert tokens.find("cat") == (5,)
    assert [word.text for word in tokens.words()] == ["a", "toy", "cat"]
    assert tokens.words()[1].tokens == (2, 3, 4)
    assert len(set(tokens.ids[2:5])) == 3
    with pytest.raises(ValueError, match="24 tokens with its start and end"):
        model.text.tokens("<toy> " * 7 + "a")
    named = load(sd_folder, family="sd1", embedding=path)  # as the file is called
    assert named.text.tokens("a toy cat").find("toy") == (2, 3, 4)
    assert (
        named.text.tokens("two toys").ids
        == load(sd_folder, family="sd1").text.tokens("two toys").ids
    )


def test_sdxl_takes_both_sets_and_pools_at_the_end_of_the_prompt(sdxl_folder, written, tmp_path):
    path = written(clip_l=vectors(2, 32), clip_g=vectors(2, 48))
    model = load(sdxl_folder, family="sdxl", embedding=path)
    tokens = model.text.tokens("a toy cat")
    assert tokens.find("toy") == (2, 3)
    expected = model.text.encode(["a toy cat"])
    for encoder in (sdxl_folder / "text_encoder", sdxl_folder / "text_encoder_2"):
        assert json.loads((encoder / "config.json").read_text())["eos_token_id"] != 2
    copy = shutil.copytree(sdxl_folder, tmp_path / "published")
    for name in ("text_encoder", "text_encoder_2"):
        config = copy / name / "config.json"
        said = json.loads(config.read_text()) | {"eos_token_id": 2}  # as published
        config.write_text(json.dumps(said))
    published = load(copy, family="sdxl", embedding=path).text.encode(["a toy cat"])
    assert torch.equal(published.pooled, expected.pooled)
    assert torch.equal(published.hidden_states, expected.hidden_states)


def test_the_fingerprint_knows_the_word_and_its_vectors(sd_folder, written):
    plain = load(sd_folder, family="sd1").fingerprint
    one = written("one.safetensors", emb_params=vectors(1, 32))
    other = written("other.safetensors", emb_params=vectors(1, 32, seed=4))
    found = [
        load(sd_folder, family="sd1", embedding=each).fingerprint
        for each in (f"{one}:ab", f"{one}:yz", f"{other}:ab")
    ]
    assert len({plain, *found}) == 4
    assert load(sd_folder, family="sd1", embedding=Embedding(one, "ab")).fingerprint == found[0]


@pytest.mark.parametrize(
    ("tensors", "error", "sentence"),
    [
        ({"emb_params": torch.zeros(2, 31)}, ModelError, r"widths \[31\].*takes one of width 32"),
        ({"a": torch.zeros(1, 32), "b": torch.zeros(2, 32)}, ModelError, "2 sets of vectors"),
        ({"emb_params": torch.zeros(1, 2, 32)}, ModelError, "vectors of a textual inversion"),
        ({"emb_params": torch.zeros(0, 32)}, ModelError, "vectors of a textual inversion"),
        ({"emb_params": torch.zeros(2, 32).int()}, ModelError, "vectors of a textual inversion"),
        ({"emb_params": torch.full((2, 32), torch.nan)}, ModelError, "NaN or infinity"),
        ({}, ModelError, "0 sets of vectors"),
        ({"cat</w>": torch.zeros(1, 32)}, ValueError, "in the vocabulary already; name another"),
        ({"two words": torch.zeros(1, 32)}, ValueError, "'two words' is no single word"),
    ],
)
def test_what_is_no_word_is_one_sentence(sd_folder, written, tensors, error, sentence):
    path = written(**tensors)
    with pytest.raises(error, match=sentence) as caught:
        load(sd_folder, family="sd1", embedding=path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value) or "vocabulary" in str(caught.value)


@pytest.mark.slow
def test_another_autoencoder_is_a_file_or_a_folder(sd_folder, single_file, sdxl_folder, tmp_path):
    plain = load(sd_folder, family="sd1")
    images = torch.rand(1, 3, 32, 32)
    folder = load(sd_folder, family="sd1", vae=sdxl_folder)
    inner = load(sd_folder, family="sd1", vae=sdxl_folder / "vae")
    expected = load(sdxl_folder, family="sdxl").autoencoder
    assert torch.equal(folder.autoencoder.encode(images), expected.encode(images))
    assert folder.fingerprint == inner.fingerprint != plain.fingerprint
    assert load(sd_folder, family="sd1").fingerprint == plain.fingerprint
    whole = single_file("sd1")
    bare = {
        name.removeprefix("first_stage_model."): tensor
        for name, tensor in load_file(whole).items()
        if name.startswith("first_stage_model.")
    }
    save_file(bare, tmp_path / "vae.safetensors")
    out_of_checkpoint = load(sd_folder, family="sd1", vae=whole).autoencoder
    alone = load(sd_folder, family="sd1", vae=tmp_path / "vae.safetensors").autoencoder
    assert torch.equal(alone.encode(images), out_of_checkpoint.encode(images))
    assert alone.vae.config.scaling_factor == plain.autoencoder.vae.config.scaling_factor


def test_a_file_without_an_autoencoder_takes_another(
    single_file, vocabulary_folder, sd_folder, tmp_path
):
    kept = {
        name: tensor
        for name, tensor in load_file(single_file("sd1")).items()
        if not name.startswith("first_stage_model.")
    }
    save_file(kept, tmp_path / "pruned.safetensors")
    model = load(
        tmp_path / "pruned.safetensors", family="sd1", tokenizer=vocabulary_folder, vae=sd_folder
    )
    images = torch.rand(1, 3, 32, 32)
    expected = load(sd_folder, family="sd1").autoencoder
    assert torch.equal(model.autoencoder.encode(images), expected.encode(images))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"latent_channels": 8}, "8 latent channels and 2 pixels a latent"),
        ({"block_out_channels": (16, 16, 32)}, "4 latent channels and 4 pixels a latent"),
    ],
)
def test_an_autoencoder_of_other_latents_is_refused(sd_folder, tmp_path, change, said):
    own = json.loads((sd_folder / "vae" / "config.json").read_text())
    config = {key: own[key] for key in ("layers_per_block", "norm_num_groups")}
    config |= {"latent_channels": 4, "block_out_channels": (16, 32), **change}
    levels = len(config["block_out_channels"])
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        **config,
    ).save_pretrained(tmp_path / "vae")
    with pytest.raises(ModelError, match=f"it has {said}, where the model has 4 and 2"):
        load(sd_folder, family="sd1", vae=tmp_path)


def test_a_tilde_is_the_home_folder(sd_folder, written, tmp_path, monkeypatch):
    path = written(emb_params=vectors(2, 32))
    shutil.copytree(sd_folder / "vae", tmp_path / "own")
    monkeypatch.setenv("HOME", str(tmp_path))
    model = load(sd_folder, family="sd1", embedding=f"~/{path.name}:<toy>", vae="~/own")
    assert model.additions == ["vae own", f"embedding {path.name}"]
    assert model.text.tokens("a <toy>").find("<toy>") == (2, 3)


def test_what_is_no_autoencoder_is_one_sentence(sd_folder, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "old.ckpt").write_bytes(b"x")
    named = sd_folder / "vae" / "diffusion_pytorch_model.safetensors"
    for source, sentence in (
        (tmp_path / "x.safetensors", "holds no autoencoder"),
        (tmp_path / "old.ckpt", "is pickled"),
        (tmp_path, "is no autoencoder; give"),
        (tmp_path / "nowhere", "is no autoencoder; give"),
        (named, "in diffusers' names; give the folder"),
    ):
        with pytest.raises(ModelError, match=sentence):
            load(sd_folder, family="sd1", vae=source)
