"""Inversion files by mutation: raw bytes, and documents and tensors that carry a right checksum."""

import copy
import json
import multiprocessing
import struct
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import save

import pivotal
from pivotal.inversion_file import _checksum, read_document, read_inversion, write_inversion

PROMPT = "a red circle on a gray background"
TARGET = "a blue circle on a gray background"
FAST, SLOW = 40, 1500
VALUES = [
    None, True, False, -1, 0, 1, 2, 63, 10**6, 10**18, 10**400, 0.5, -0.5, 1e308, float("nan"),
    float("inf"), -float("inf"), "", "x", "\udcff", "\0", "日本 🐈", "../../etc/passwd", "x" * 5000,
    [], [1], [0, 0, 0, 0], [1, 2, 3], [-1, 5], [1e9, 1e9], [[]], {}, {"x": 1}, {"": {}}, "ddim",
    "null-text", "edict", {"inner_steps": -3}, {"inner_steps": "many"}, {"guidance_scale": "nan"},
]  # fmt: skip


@pytest.fixture(scope="session")
def engine():
    return pivotal.Engine.load("shapes")


@pytest.fixture(scope="session")
def inversion(engine):
    y, x = np.mgrid[:64, :64]
    pixels = np.full((64, 64, 3), 128, np.uint8)
    pixels[(x - 30) ** 2 + (y - 34) ** 2 < 14**2] = (220, 40, 40)
    return engine.invert(
        pixels, PROMPT, method="null-text", num_inference_steps=2, options={"inner_steps": 1}
    )


@pytest.fixture(scope="session")
def whole(inversion, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "cat.safetensors"
    write_inversion(inversion, path)
    return path.read_bytes()


def parts(data):
    """The document and the tensors of a file."""
    from safetensors.torch import load

    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    return json.loads(header["__metadata__"]["pivotal"]), load(data)


def built(document, tensors):
    """A file whose checksum is right, whatever it says."""
    try:
        document["checksum"] = _checksum(document, tensors)
    except (ValueError, TypeError):  # what can't be summed can't be right
        document["checksum"] = "0" * 64
    return save(tensors, metadata={"pivotal": json.dumps(document)})


def places(document, prefix=()):
    """Every path to a value, containers included."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        yield (*prefix, key)
        if isinstance(value, dict | list):
            yield from places(value, (*prefix, key))


def edit_document(document, tensors, random):
    """Other values, missing keys, and keys too many, anywhere in the document."""
    for _ in range(random.integers(1, 3)):
        every = list(places(document))
        *way, last = every[random.integers(len(every))]
        inside = document
        for key in way:
            inside = inside[key]
        choice = random.integers(5)
        if choice == 0 and isinstance(inside, dict):
            del inside[last]
        elif choice == 1 and isinstance(inside, dict):
            inside["unheard of"] = VALUES[random.integers(len(VALUES))]
        else:
            inside[last] = copy.deepcopy(VALUES[random.integers(len(VALUES))])
    return document, tensors


def edit_tensors(document, tensors, random):
    """Other shapes, types, values and names, and tensors missing or too many."""
    name = sorted(tensors)[random.integers(len(tensors))]
    tensor = tensors[name]
    choice = random.integers(8)
    if choice == 0:
        del tensors[name]
    elif choice == 1:
        tensors["stored.more"] = tensor.clone()
    elif choice == 2:
        kinds = (torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.bfloat16)
        tensors[name] = tensor.to(kinds[random.integers(len(kinds))])
    elif choice == 3:
        tensors[name] = tensor.reshape(-1)[: random.integers(tensor.numel())].clone()
    elif choice == 4 and tensor.is_floating_point():
        extreme = (float("nan"), float("inf"), 1e38, -1e30)[random.integers(4)]
        tensor.view(-1)[random.integers(tensor.numel())] = extreme
    elif choice == 5:
        tensors[name] = tensor[None]
    elif choice == 6:
        tensors[name] = torch.cat([tensor, tensor], dim=int(random.integers(tensor.ndim)))
    else:
        tensors[name] = torch.zeros([0] * tensor.ndim, dtype=tensor.dtype)
    return document, tensors


def edit_header(data, random):
    """safetensors' own header: offsets, shapes and types, with its length kept right."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]
    entry = header[names[random.integers(len(names))]]
    values = [0, 1, -1, 7, 10**6, 10**15, 2**63, 2**64, None, "x"]
    key = ("data_offsets", "shape", "dtype")[random.integers(3)]
    if key == "dtype":
        entry[key] = ("F64", "U8", "I4", "C64", "", "F8_E4M3", 3)[random.integers(7)]
    else:
        entry[key][random.integers(len(entry[key]))] = values[random.integers(len(values))]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def edit_bytes(data, random):
    damaged = bytearray(data)
    choice = random.integers(6)
    reach = len(data) if random.random() < 0.5 else min(len(data), 3000)
    at = int(random.integers(reach))
    if choice == 0:
        return data[:at]
    if choice == 1:
        for place in random.integers(0, reach, random.integers(1, 12)):
            damaged[place] ^= 1 << int(random.integers(8))
    elif choice == 2:
        del damaged[at : at + int(random.integers(1, 40))]
    elif choice == 3:
        damaged[at:at] = random.bytes(int(random.integers(1, 40)))
    elif choice == 4:
        damaged += random.bytes(int(random.integers(1, 400)))
    else:
        damaged[:8] = struct.pack("<Q", int(random.choice([0, 1, 2**31, 2**62, len(data)])))
    return bytes(damaged)


def same(one, other):
    return (
        one.prompt == other.prompt
        and one.options == other.options
        and torch.equal(one.latents, other.latents)
        and torch.equal(one.inverted.noise, other.inverted.noise)
        and np.array_equal(one.picture.pixels, other.picture.pixels)
    )


def check_raw_bytes(edit, count, inversion, whole, outcomes, only):
    """From schema 2 on, what is read is what was written."""
    random = np.random.default_rng(zlib.crc32(edit.__name__.encode()))
    for _ in range(count):
        data = edit(whole, random)
        path = only("bad cat.safetensors", data)
        found, _ = outcomes(f"inversion files, {edit.__name__}").of(
            lambda path=path: read_inversion(path), path.name
        )
        if found is not None:
            assert same(found, inversion)


def check_content(edit, count, whole, outcomes, only, tmp_path_factory):
    """What is read is valid: it can be written, and is read again as it was."""
    random = np.random.default_rng(zlib.crc32(edit.__name__.encode()))
    again = tmp_path_factory.mktemp("again") / "again.safetensors"
    valid = []
    for _ in range(count):
        path = only("bad cat.safetensors", built(*edit(*parts(whole), random)))
        kind = outcomes(f"inversion files, {edit.__name__}")
        found, _ = kind.of(lambda path=path: read_inversion(path), path.name)
        kind = outcomes("inversion files, document alone")
        kind.of(lambda path=path: read_document(path), path.name)
        if found is not None:
            write_inversion(found, again)
            assert same(read_inversion(again), found)
            valid.append(found)
    return valid


def check_replays(valid, engine, outcomes):
    """What was read is edited, or refused in a sentence: never an error from deep inside."""
    for inversion in valid:
        for call in (
            lambda inversion=inversion: engine.edit(inversion, TARGET),
            lambda inversion=inversion: engine.explain(inversion.prompt, TARGET),
        ):
            outcomes("editing what a mutated file holds").of(call, "")


@pytest.mark.parametrize("edit", [edit_bytes, edit_header], ids=lambda edit: edit.__name__)
def test_changed_bytes_are_refused_or_change_nothing(edit, inversion, whole, outcomes, only):
    check_raw_bytes(edit, FAST, inversion, whole, outcomes, only)


@pytest.mark.parametrize("edit", [edit_document, edit_tensors], ids=lambda edit: edit.__name__)
def test_changed_content_is_refused_or_valid(edit, engine, whole, outcomes, only, tmp_path_factory):
    valid = check_content(edit, FAST, whole, outcomes, only, tmp_path_factory)
    check_replays(valid[:2], engine, outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("edit", [edit_bytes, edit_header], ids=lambda edit: edit.__name__)
def test_many_more_changed_bytes_are_refused(edit, inversion, whole, outcomes, only):
    check_raw_bytes(edit, SLOW, inversion, whole, outcomes, only)


@pytest.mark.slow
@pytest.mark.parametrize("edit", [edit_document, edit_tensors], ids=lambda edit: edit.__name__)
def test_much_more_changed_content_is_refused_or_valid(
    edit, engine, whole, outcomes, only, tmp_path_factory
):
    valid = check_content(edit, SLOW, whole, outcomes, only, tmp_path_factory)
    check_replays(valid[:60], engine, outcomes)


def _read_then_empty(path, answers):
    inversion = read_inversion(path)
    path.write_bytes(b"")
    finite = inversion.inverted.noise.isfinite().all().item()
    answers.put((int(inversion.picture.pixels.sum()), finite))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_file_that_changes_after_it_was_read_changes_nothing(whole, inversion, tmp_path):
    """In a process of its own: a mapped file that shrinks kills whoever touches the mapping."""
    path = tmp_path / "cat.safetensors"
    path.write_bytes(whole)
    forked = multiprocessing.get_context("fork")
    answers = forked.Queue()
    reader = forked.Process(target=_read_then_empty, args=(path, answers))
    reader.start()
    reader.join(60)
    assert reader.exitcode == 0
    assert answers.get(timeout=10) == (int(inversion.picture.pixels.sum()), True)


def test_deeply_nested_documents_are_refused(whole, outcomes, only):
    tensors = parts(whole)[1]
    for depth in (100, 5_000, 200_000):
        text = '{"schema": 2, "report": ' + "[" * depth + "]" * depth + "}"
        path = only("deep.safetensors", save(tensors, metadata={"pivotal": text}))
        _, sentence = outcomes("inversion files, nested").of(
            lambda path=path: read_inversion(path), path.name
        )
        assert sentence
