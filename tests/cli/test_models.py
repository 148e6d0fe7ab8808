"""`pivotal models info` and `verify`; the list is in test_listings."""

import json
import shutil
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pivotal.model.load import load


@pytest.fixture
def own(tmp_path):
    """The bundled model as a folder of one's own."""
    bundled = Path(str(resources.files("pivotal") / "bundled" / "shapes"))
    return shutil.copytree(bundled, tmp_path / "own")


def test_info_says_what_the_files_say_and_reads_no_weight(pivotal, own, monkeypatch):
    monkeypatch.setattr("pivotal.model.weights.safe_open", None)
    done = pivotal("models", "info", own, "--json", cwd=own)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    unet = load_file(own / "unet" / "diffusion_pytorch_model.safetensors")
    assert said["parameters"]["unet"] == sum(tensor.numel() for tensor in unet.values())
    assert (said["family"], said["prediction_type"]) == ("shapes", "epsilon")
    files = {Path(each["path"]).relative_to(own).parts[0]: each for each in said["files"]}
    assert set(files) == {"unet", "vae", "text_encoder"}
    assert files["unet"]["tensors"] == len(unet)
    assert "million parameters" in pivotal("models", "info", own, cwd=own).stdout
    said = json.loads(pivotal("models", "info", "random:sd2", "--json", cwd=own).stdout)
    assert (said["prediction_type"], said["files"]) == ("v_prediction", [])


def test_verify_reads_all_and_finds_what_is_unsound(pivotal, own):
    said = json.loads(pivotal("models", "verify", own, "--json", cwd=own).stdout)
    assert said["sound"] is True
    assert said["fingerprint"] == load(own).fingerprint
    path = own / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[3] = torch.nan
    save_file(tensors, path)
    done = pivotal("models", "verify", own, cwd=own)
    assert done.returncode == 2
    assert "text_encoder has NaN or infinity in" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    path.write_bytes(path.read_bytes()[:-9])
    for command in ("info", "verify"):
        done = pivotal("models", command, own, cwd=own)
        assert done.returncode == 2
        assert "its header promises" in done.stderr
