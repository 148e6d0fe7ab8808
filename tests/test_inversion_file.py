"""An inversion on disk: whole or refused, never half-read."""

import random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pivotal.errors import InversionFileError, OutputError
from pivotal.images import fit, read_image
from pivotal.inversion.base import Inverted
from pivotal.inversion_file import SCHEMA, Inversion, read_inversion, write_inversion


@pytest.fixture
def inversion():
    generator = torch.Generator().manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8)
    picture = read_image(pixels)
    return Inversion(
        picture=fit(picture, (32, 32), "crop"),
        prompt="a red circle “quoted”",
        method="null-text",
        options={"inner_steps": 3, "guidance_scale": 7.5},
        guidance_scale=7.5,
        num_inference_steps=4,
        latents=torch.randn(1, 4, 8, 8, generator=generator),
        inverted=Inverted(
            torch.randn(1, 4, 8, 8, generator=generator),
            {"null_embeddings": torch.randn(1, 4, 7, 16, generator=generator)},
            {"losses": torch.zeros(1, 4, 3)},
        ),
        model="shapes",
        family="shapes",
        fingerprint="f" * 64,
        image_digest=picture.digest,
        schedule={"timesteps": [751.0, 501.0, 251.0, 1.0]},
        report={"psnr": 29.0},
    )


@pytest.fixture
def file(inversion, tmp_path):
    path = tmp_path / "cat.safetensors"
    write_inversion(inversion, path)
    return path


def refusal(path):
    try:
        read_inversion(path)
    except InversionFileError as error:
        return str(error)
    return None


def test_what_is_written_is_read(inversion, file):
    again = read_inversion(file)
    assert torch.equal(again.inverted.noise, inversion.inverted.noise)
    assert torch.equal(again.latents, inversion.latents)
    for name, tensor in inversion.inverted.stored.items():
        assert torch.equal(again.inverted.stored[name], tensor)
    assert np.array_equal(again.picture.pixels, inversion.picture.pixels)
    assert again.picture == inversion.picture
    for name in ("prompt", "method", "options", "guidance_scale", "num_inference_steps", "model",
                 "family", "fingerprint", "image_digest", "schedule", "report"):  # fmt: skip
        assert getattr(again, name) == getattr(inversion, name)


def test_diagnostics_are_not_stored(file):
    assert not read_inversion(file).inverted.diagnostics


def test_cut_and_mutated_files_give_one_sentence(file, tmp_path):
    whole = file.read_bytes()
    chance = random.Random(0)
    refused = 0
    for number in range(200):
        data = bytearray(whole)
        if number % 2:
            data = data[: chance.randrange(len(data))]
        else:
            for _ in range(chance.randrange(1, 20)):
                data[chance.randrange(min(len(data), 3000))] = chance.randrange(256)
        path = tmp_path / "bad.safetensors"
        path.write_bytes(bytes(data))
        said = refusal(path)
        if said is not None:  # a flipped bit inside a word of the prompt is no damage
            refused += 1
            assert "\n" not in said
            assert "bad.safetensors" in said
    assert refused > 150


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InversionFileError, match="nowhere"):
        read_inversion(tmp_path / "nowhere.safetensors")


def test_a_safetensors_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(InversionFileError, match="no inversion"):
        read_inversion(path)


def test_a_newer_schema_is_refused(inversion, file):
    data = file.read_bytes()
    newer = data.replace(f'\\"schema\\": {SCHEMA}'.encode(), f'\\"schema\\": {SCHEMA + 1}'.encode())
    assert newer != data
    file.write_bytes(newer)
    with pytest.raises(InversionFileError, match="upgrade"):
        read_inversion(file)


def test_nothing_is_left_where_writing_fails(inversion, tmp_path):
    with pytest.raises(OutputError, match="nowhere"):
        write_inversion(inversion, tmp_path / "nowhere" / "cat.safetensors")
    assert not list(tmp_path.iterdir())
