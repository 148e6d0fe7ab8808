"""Malformed checkpoints, by mutation: each gives one sentence that names the file, or, where the
mutation spared what matters, a model. Never another exception.
"""

import json
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file, save, save_file

from pivotal.cli import main
from pivotal.errors import PivotalError
from pivotal.model.load import load as load_model
from pivotal.model.lora_file import Lora
from pivotal.model.safetensors_header import read_header
from pivotal.model.textual_inversion import Embedding, teach

EACH, MANY = {"edit_bytes": 10, "edit_header": 10, "edit_tensors": 2}, 60


def parts(data):
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def edit_bytes(data, random):
    """Cut, flip, drop, insert, or lie about the header's length."""
    choice, reach = random.integers(6), min(len(data), 20_000)
    at = int(random.integers(reach))
    if choice == 0:
        return data[:at]
    if choice == 1:
        return data[: int(random.integers(len(data)))]
    damaged = bytearray(data)
    if choice == 2:
        for place in random.integers(0, reach, random.integers(1, 12)):
            damaged[place] ^= 1 << int(random.integers(8))
    elif choice == 3:
        del damaged[at : at + int(random.integers(1, 40))]
    elif choice == 4:
        damaged[at:at] = random.bytes(int(random.integers(1, 40)))
    else:
        lengths = [0, 1, 2**31, 2**62, 2**64 - 1, len(data), len(data) - 8]
        damaged[:8] = struct.pack("<Q", lengths[random.integers(len(lengths))])
    return bytes(damaged)


def edit_header(data, random):
    """Wrong dtypes, shapes, offsets and names in a header whose length is right."""
    header, body = parts(data)
    names = [name for name in header if name != "__metadata__"]
    name = names[random.integers(len(names))]
    entry, values = header[name], [0, 1, -1, 7, 10**6, 2**63, 2**70, None, "x", 1.5, True, []]
    choice = random.integers(7)
    if choice == 0:
        entry["dtype"] = ("F64", "U8", "I4", "", "F8_E4M3", "BF16", 3, None, [])[random.integers(9)]
    elif choice == 1 and entry["shape"]:
        entry["shape"][random.integers(len(entry["shape"]))] = values[random.integers(12)]
    elif choice == 2:
        entry["data_offsets"][random.integers(2)] = values[random.integers(12)]
    elif choice == 3:
        header[name] = values[random.integers(12)]
    elif choice == 4:
        del entry[("dtype", "shape", "data_offsets")[random.integers(3)]]
    elif choice == 5:
        header["__metadata__"] = values[random.integers(12)]
    else:
        other = names[random.integers(len(names))]
        header[name]["data_offsets"] = header[other]["data_offsets"]
        header[name]["shape"] = header[other]["shape"]
    return joined(header, body)


def edit_tensors(data, random):
    """A sound file of the wrong tensors: missing, other shapes, other dtypes, other names."""
    tensors = load(data)
    for _ in range(int(random.integers(1, 4))):
        if not tensors:
            break
        name = sorted(tensors)[random.integers(len(tensors))]
        tensor, choice = tensors[name], random.integers(6)
        if choice == 0:
            del tensors[name]
        elif choice == 1:
            tensors[name] = tensor.reshape(-1)[: random.integers(tensor.numel() + 1)].clone()
        elif choice == 2:
            tensors[name] = tensor.to((torch.int8, torch.int64, torch.bool)[random.integers(3)])
        elif choice == 3:
            tensors[name] = tensor[None].clone()
        elif choice == 4:
            tensors[name] = torch.zeros([0] * tensor.ndim)
        else:
            prefix = name[: random.integers(len(name))]
            gone = [each for each in tensors if each.startswith(prefix) and prefix]
            for each in gone[: len(tensors) - 1]:
                del tensors[each]
    return save(tensors)


EDITS = [edit_bytes, edit_header, edit_tensors]


def refusal(call, name):
    """The sentence, None if the model was read. Any other exception passes through."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=RuntimeWarning)
        try:
            call()
        except (PivotalError, ValueError) as error:
            sentence = str(error)
            if isinstance(error, UnicodeError) or not sentence:
                raise AssertionError("Python's own words") from error
            assert "\n" not in sentence, sentence
            assert len(sentence) < 600, sentence
            assert name in sentence or sentence.startswith("vae lacks"), sentence  # a folder's
            return sentence
    return None


def check(edit, count, path, data, call):
    random = np.random.default_rng(zlib.crc32(edit.__name__.encode()))
    refused = 0
    for _ in range(count):
        path.write_bytes(edit(data, random))
        refused += refusal(call, path.name) is not None
    return refused


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_damaged_single_files_are_one_sentence(edit, single_file, vocabulary_folder, tmp_path):
    path = tmp_path / "bad.safetensors"
    data = single_file("sd1").read_bytes()

    def call():
        load_model(path, family="sd1", tokenizer=vocabulary_folder)

    count = EACH[edit.__name__]
    assert check(edit, count, path, data, call) > count / 3


@pytest.mark.slow
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_damaged_folders_are_one_sentence(edit, sd_copy):
    path = sd_copy / "vae" / "diffusion_pytorch_model.safetensors"
    data = path.read_bytes()
    assert check(edit, 4, path, data, lambda: load_model(sd_copy, family="sd1")) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_many_more_damaged_files_are_one_sentence(
    edit, family, single_file, vocabulary_folder, tmp_path
):
    path = tmp_path / "bad.safetensors"
    data = single_file(family).read_bytes()

    def call():
        load_model(path, family=family, tokenizer=vocabulary_folder)

    assert check(edit, MANY, path, data, call) > MANY / 2


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_damaged_loras_and_embeddings_are_one_sentence(edit, sd_folder, tmp_path):
    model = load_model(sd_folder, family="sd1")
    module = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
    lora = {
        f"unet.{module}.lora_A.weight": torch.ones(2, 32),
        f"unet.{module}.lora_B.weight": torch.ones(32, 2),
    }
    path = tmp_path / "bad.safetensors"
    data = save(lora, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2})})
    refused = check(edit, 15, path, data, lambda: model.loras.wear([Lora(path)]))
    words = iter(f"<word{number}>" for number in range(1000))

    def call():
        teach(Embedding(path, next(words)), model.text.tokenizers, model.text.encoders)

    refused += check(edit, 15, path, save({"emb_params": torch.ones(3, 32)}), call)
    assert refused > 10


def renamed_pickle(path):
    torch.save({"a": torch.zeros(3)}, path)


def old_pickle(path):
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)


def nested(path):
    path.write_bytes(joined(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b""))


def twice(path):
    entry = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    path.write_bytes(joined(b"{" + entry + b"," + entry + b"}", b"x"))


def overlapping(path):
    entry = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
    path.write_bytes(joined({"a": entry, "b": entry}, b"xx"))


def with_a_hole(path):
    entry = {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}
    path.write_bytes(joined({"a": entry}, b"xxxx"))


def not_utf8(path):
    path.write_bytes(joined(b'{"\xff\xfe": 1}', b""))


def a_list(path):
    path.write_bytes(joined(b"[1, 2]", b""))


CASES = {
    "a renamed pickle": (renamed_pickle, "but a pickle"),
    "a renamed old pickle": (old_pickle, "but a pickle"),
    "deeply nested": (nested, "damaged header"),
    "a name twice": (twice, "a name stands there twice"),
    "overlapping": (overlapping, "overlap"),
    "a hole": (with_a_hole, "leave holes"),
    "no text": (not_utf8, "damaged header"),
    "a list": (a_list, "damaged header"),
    "empty": (lambda path: path.write_bytes(b""), "not a safetensors file"),
    "no tensors": (lambda path: save_file({}, path), "holds no Stable Diffusion model"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" * 9), "not a safetensors"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_command_line_refuses_with_one_sentence_and_code_2(name, tmp_path, capsys):
    make, sentence = CASES[name]
    path = tmp_path / "bad.safetensors"
    make(path)
    with pytest.raises(SystemExit) as stop:
        main(["generate", "x", "--model", str(path), "-o", str(tmp_path / "x.png")])
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.err.startswith("pivotal: ")
    assert len(said.err.strip().splitlines()) == 1
    assert sentence in said.err
    assert not said.out
    assert [each.name for each in tmp_path.iterdir()] == ["bad.safetensors"]


def test_what_a_header_says_is_what_safetensors_reads(single_file, tmp_path):
    for path in (single_file("sdxl"), Path(tmp_path / "scalar.safetensors")):
        if not path.exists():
            save_file({"s": torch.tensor(1.0), "e": torch.zeros(0, 3)}, path, {"k": "v"})
        header, tensors = read_header(path), load_file(path)
        assert header.shapes == {name: tuple(each.shape) for name, each in tensors.items()}
    assert header.metadata == {"k": "v"}
