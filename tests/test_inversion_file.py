"""An inversion on disk: whole or refused, never half-read."""

import json
import os
import random
import threading
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pivotal import __version__
from pivotal.errors import InversionFileError, OutputError
from pivotal.images import fit, read_image
from pivotal.inversion.base import Inverted
from pivotal.inversion_file import (
    SCHEMA,
    Inversion,
    read_document,
    read_inversion,
    write_inversion,
)


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


def test_stored_tensors_that_share_memory_are_written(inversion, tmp_path):
    noise = inversion.inverted.noise
    stored = {"clean": inversion.latents, "part": noise[:, :2], "wide": noise.expand(1, 4, 8, 8)}
    shared = replace(inversion, inverted=Inverted(noise, stored))
    write_inversion(shared, tmp_path / "shared.safetensors")
    again = read_inversion(tmp_path / "shared.safetensors")
    for name, tensor in stored.items():
        assert torch.equal(again.inverted.stored[name], tensor)


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


def rewritten(file, change, tensors=None):
    """The same file with its document changed, and its checksum left out or left wrong."""
    with safe_open(file, framework="pt") as opened:
        document = json.loads(opened.metadata()["pivotal"])
        kept = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    change(document)
    save_file({**kept, **(tensors or {})}, file, metadata={"pivotal": json.dumps(document)})
    return file


def as_schema_1(document):
    document["schema"] = 1
    del document["checksum"]
    document["versions"] = {"pivotal": "0.1.0", "torch": "2.13.0"}


def test_a_newer_schema_is_refused(file):
    rewritten(file, lambda document: document.update(schema=SCHEMA + 1))
    with pytest.raises(InversionFileError, match=f"schema {SCHEMA + 1}, .* up to {SCHEMA}; upgrad"):
        read_inversion(file)


def test_the_older_schema_is_read(inversion, file):
    rewritten(file, as_schema_1)
    again = read_inversion(file)
    assert again.prompt == inversion.prompt
    assert torch.equal(again.inverted.noise, inversion.inverted.noise)


def test_every_flipped_bit_is_noticed(inversion, file, tmp_path):
    """In the tensors and in the words of the document alike."""
    whole = file.read_bytes()
    chance = random.Random(1)
    path = tmp_path / "flipped.safetensors"
    for place in [chance.randrange(len(whole)) for _ in range(200)]:
        data = bytearray(whole)
        data[place] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        try:
            again = read_inversion(path)
        except InversionFileError:
            continue
        # White space between the header's words is all that may differ unnoticed.
        assert again.prompt == inversion.prompt
        assert torch.equal(again.inverted.noise, inversion.inverted.noise)
        assert torch.equal(again.latents, inversion.latents)


def test_the_file_says_what_wrote_it(file):
    document = read_document(file)
    assert document["versions"] == {
        "pivotal": __version__,
        **{name: version(name) for name in ("torch", "diffusers", "transformers")},
    }
    assert document["schedule"]["timesteps"] == [751.0, 501.0, 251.0, 1.0]
    assert len(document["checksum"]) == 64


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schema", "two"),
        ("schema", 0),
        ("schema", True),
        ("prompt", None),
        ("method", 3),
        ("options", []),
        ("guidance_scale", float("nan")),
        ("guidance_scale", float("inf")),
        ("guidance_scale", 10**400),
        ("guidance_scale", "7.5"),
        ("num_inference_steps", 0),
        ("num_inference_steps", 2.5),
        ("num_inference_steps", 10**30),
        ("fingerprint", "abc"),
        ("image_digest", None),
        ("schedule", "default"),
        ("report", []),
        ("fit", None),
        ("fit", {"policy": "squash", "source_size": [1, 1], "box": [0] * 4, "inner": [0] * 4}),
        ("fit", {"policy": "crop", "source_size": [40], "box": [0] * 4, "inner": [0] * 4}),
        (
            "fit",
            {
                "policy": "crop",
                "source_size": [40, 64],
                "box": [0, 0, 65, 40],
                "inner": [0, 0, 32, 32],
            },
        ),
        (
            "fit",
            {
                "policy": "crop",
                "source_size": [40, 64],
                "box": [0, 0, 64, 40],
                "inner": [0, 0, 0, 32],
            },
        ),
        (
            "fit",
            {
                "policy": "crop",
                "source_size": [10**9, 64],
                "box": [0, 0, 64, 40],
                "inner": [0, 0, 32, 32],
            },
        ),
    ],
)
@pytest.mark.parametrize("schema", [1, 2])
def test_a_document_that_says_something_impossible_is_refused(file, name, value, schema):
    def change(document):
        if schema == 1:
            as_schema_1(document)
        document[name] = value

    said = refusal(rewritten(file, change))
    assert said is not None
    assert "\n" not in said
    assert len(said) < 400


@pytest.mark.parametrize("name", ["prompt", "schema", "fit", "schedule"])
def test_a_part_that_is_missing_is_named(file, name):
    def change(document):
        as_schema_1(document)
        del document[name]

    assert f"'{name}'" in refusal(rewritten(file, change))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({"noise": torch.zeros(1, 4, 8, 9)}, "noise"),
        ({"latents": torch.zeros(2, 4, 8, 8), "noise": torch.zeros(2, 4, 8, 8)}, "latents"),
        ({"latents": torch.zeros(1, 4, 8, 8, dtype=torch.float16)}, "float16"),
        ({"noise": torch.full((1, 4, 8, 8), float("nan"))}, "noise holds NaN"),
        ({"stored.null_embeddings": torch.full((1, 2), float("inf"))}, "null_embeddings holds NaN"),
        ({"stored.odd": torch.zeros(1, 2, dtype=torch.float8_e8m0fnu)}, "F8_E8M0"),
        ({"stored.odd": torch.zeros(1, 2, dtype=torch.int16)}, "odd is torch.int16"),
        ({"stored.odd": torch.zeros(2, 2)}, "odd is torch.float32 [2, 2]"),
        ({"stored.odd": torch.zeros(())}, "odd is torch.float32 []"),
        ({"picture": torch.zeros(32, 32, 4, dtype=torch.uint8)}, "picture"),
        ({"picture": torch.zeros(32, 32, 3)}, "picture"),
        ({"picture": torch.zeros(0, 32, 3, dtype=torch.uint8)}, "picture"),
        ({"picture": torch.zeros(31, 32, 3, dtype=torch.uint8)}, "inner"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(file, tensor, message):
    said = refusal(rewritten(file, as_schema_1, tensor))
    assert message in said
    assert "\n" not in said


def test_a_document_that_is_no_document_is_refused(file):
    with safe_open(file, framework="pt") as opened:
        kept = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    for text in ("", "[]", "3", "null", "{", "[" * 100_000):
        save_file(kept, file, metadata={"pivotal": text})
        said = refusal(file)
        assert said is not None
        assert "\n" not in said


def test_a_file_that_shrinks_after_it_was_read_changes_nothing(inversion, file):
    again = read_inversion(file)
    file.write_bytes(b"")  # in place: what is mapped would be gone
    assert np.array_equal(again.picture.pixels, inversion.picture.pixels)
    assert torch.equal(again.inverted.noise, inversion.inverted.noise)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"3",
        b"{",
        b"[" * 100_000,
        b'{"a": 1}',
        b'{"a": {"data_offsets": [0]}}',
        b'{"a": {"data_offsets": [0, "x"]}, "b": {"data_offsets": [0, 1]}}',
        b'{"a": {"data_offsets": [0, 1e999]}}',
        b'{"__metadata__": []}',
        b'{"__metadata__": {"pivotal": 3}}',
        b"\xff\xfe",
    ],
)
def test_a_header_that_is_none_is_refused(tmp_path, header):
    path = tmp_path / "bad.safetensors"
    for length in (len(header), 2**63):
        path.write_bytes(length.to_bytes(8, "little") + header)
        said = refusal(path)
        assert "bad.safetensors" in said
        assert "\n" not in said


def test_a_folder_and_a_pipe_are_refused_and_not_waited_for(tmp_path):
    assert "is not a file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    said = []
    reader = threading.Thread(target=lambda: said.append(refusal(tmp_path / "pipe")), daemon=True)
    reader.start()
    reader.join(10)
    assert said
    assert "is not a file" in said[0]


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_impossible_names_are_refused(tmp_path, name):
    assert refusal(f"{tmp_path}/{name}") is not None


def test_reading_the_document_leaves_the_tensors_alone(file):
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 255]))
    assert read_document(file)["prompt"] == "a red circle “quoted”"
    assert refusal(file) is not None


@pytest.mark.parametrize("prompt", ["", "\ud800 alone", "日本 🦊 \n two lines", "x" * 100_000])
def test_any_prompt_survives(inversion, tmp_path, prompt):
    path = tmp_path / "cat.safetensors"
    write_inversion(replace(inversion, prompt=prompt), path)
    assert read_inversion(path).prompt == prompt


def test_writing_replaces_a_file_as_a_whole(inversion, file):
    write_inversion(replace(inversion, prompt="another"), file)
    assert read_inversion(file).prompt == "another"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_nothing_is_left_where_writing_fails(inversion, tmp_path):
    with pytest.raises(OutputError, match="nowhere"):
        write_inversion(inversion, tmp_path / "nowhere" / "cat.safetensors")
    assert not list(tmp_path.iterdir())
