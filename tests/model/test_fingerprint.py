import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pivotal.errors import ModelError
from pivotal.model.fingerprint import folder_fingerprint, random_fingerprint
from pivotal.model.folder import open_folder
from pivotal.model.load import load


def fingerprint(folder, variant=None):
    return folder_fingerprint(open_folder(folder, variant))


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_it_is_the_files_not_the_place_and_not_the_dtype(sd_folder, sd_copy):
    expected = fingerprint(sd_folder)
    assert len(expected) == 64
    assert int(expected, 16)
    assert fingerprint(sd_copy) == expected
    for dtype in ("float32", "bfloat16"):
        assert load(sd_copy, family="sd1", dtype=dtype).fingerprint == expected


def test_variants_and_models_differ(sd_folder, sdxl_folder):
    every = {fingerprint(sd_folder), fingerprint(sd_folder, "fp16"), fingerprint(sdxl_folder)}
    every |= {random_fingerprint("sd1", 0), random_fingerprint("sd1", 1)}
    every |= {random_fingerprint("sd2", 0)}
    assert len(every) == 6


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_every_tensor_counts(sd_copy, component):
    before = fingerprint(sd_copy)
    (path,) = open_folder(sd_copy).weights[component]
    tensors = load_file(path)
    for name in [next(iter(tensors)), list(tensors)[-1]]:
        changed = {key: value.clone() for key, value in tensors.items()}
        changed[name].view(-1)[-1] += 1
        save_file(changed, path)
        assert fingerprint(sd_copy) != before, name


def test_configs_and_vocabularies_count_but_not_who_wrote_them(sd_copy):
    before = fingerprint(sd_copy)
    edit_json(sd_copy / "unet" / "config.json", _diffusers_version="0.1", _name_or_path="elsewhere")
    edit_json(sd_copy / "text_encoder" / "config.json", transformers_version="4.0", dtype="float64")
    assert fingerprint(sd_copy) == before
    edit_json(sd_copy / "scheduler" / "scheduler_config.json", beta_end=0.013)
    after = fingerprint(sd_copy)
    assert after != before
    merges = sd_copy / "tokenizer" / "merges.txt"
    merges.write_text(merges.read_text() + "b a\n")
    assert fingerprint(sd_copy) != after


def test_empty_tensors_and_metadata_do_no_harm(sd_copy):
    (path,) = open_folder(sd_copy).weights["vae"]
    save_file({"a": torch.zeros(0), "b": torch.ones(3)}, path, metadata={"format": "pt"})
    assert fingerprint(sd_copy)


def test_a_damaged_file_has_none(sd_copy):
    (path,) = open_folder(sd_copy).weights["unet"]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelError, match="damaged"):
        fingerprint(sd_copy)


def test_random_models_carry_it():
    assert random_fingerprint("sd1", 3) == random_fingerprint("sd1", 3)
