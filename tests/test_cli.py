"""The command line, as a person types it."""

import contextlib
import io
import json
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from pivotal.cli import main

PROMPT = "a red circle on a gray background"
TARGET = "a blue circle on a gray background"


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def pivotal(*arguments, cwd):
    """The command line in this process: what it prints, and the exit code a shell would see."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code or 0
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    y, x = np.mgrid[:96, :128]
    pixels = np.full((96, 128, 3), 128, np.uint8)
    pixels[(x - 64) ** 2 + (y - 48) ** 2 < 24**2] = (220, 40, 40)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def inverted(folder):
    return pivotal(
        "invert", "photo.png", "--prompt", PROMPT, "-o", "cat.safetensors", "--steps", 5, "--json",
        cwd=folder,
    )  # fmt: skip


@pytest.fixture(scope="module")
def edited(folder, inverted):
    return pivotal("edit", "cat.safetensors", "--target", TARGET, "--json", cwd=folder)


def test_invert_prints_one_json_object_with_its_figures(inverted):
    assert inverted.returncode == 0, inverted.stderr
    record = json.loads(inverted.stdout)
    assert {
        "method", "steps", "guidance_scale", "seconds", "psnr", "vae_psnr", "dominant_error",
        "noise_std_ratio", "model", "family", "device", "dtype", "unet_rows",
    } <= set(record)  # fmt: skip
    assert {"load", "encode", "invert", "decode", "total"} <= set(record["seconds"])


def test_the_progress_bar_is_on_stderr_with_the_time_left(inverted):
    assert "fitting null embeddings" in inverted.stderr
    assert "left" in inverted.stderr


def test_edit_prints_one_json_object_and_writes_picture_and_sheet(folder, edited):
    assert edited.returncode == 0, edited.stderr
    record = json.loads(edited.stdout)
    assert {"seconds", "touched", "edit", "outside_mask_psnr", "outputs"} <= set(record)
    assert record["touched"]["layers"] > 0
    assert record["touched"]["steps"] > 0
    with Image.open(folder / record["outputs"]["picture"]) as picture:
        assert picture.size == (96, 96)  # the centre crop, at the photograph's own scale
        assert json.loads(picture.text["pivotal"])["edit"]["target"] == TARGET
    with Image.open(folder / record["outputs"]["sheet"]) as sheet:
        assert sheet.width > 1000


def test_several_targets_give_a_picture_each(folder, inverted):
    done = pivotal(
        "edit", "cat.safetensors", "--target", TARGET, "--target", "a green circle on a gray "
        "background", "-o", "out.png", "--json", "--quiet", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["edits"]) == 2
    assert {"out-1.png", "out-2.png", "out-sheet.png"} <= {p.name for p in folder.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["invert", "nothing.png", "--prompt", "x"], "nothing.png"),
        (["invert", "photo.png", "--prompt", "x", "--method", "magic"], "magic"),
        (["invert", "photo.png", "--prompt", "x", "--model", "no/such/model"], "no/such/model"),
        (["invert", "photo.png", "--prompt", "x", "--steps", "0"], "steps=0"),
        (["invert", "photo.png", "--prompt", "x", "--option", "speed=2"], "speed"),
        (["invert", "photo.png", "--prompt", "x", "--option", "speed"], "name=value"),
        (["invert", "photo.png", "--prompt", "x", "--device", "toaster"], "toaster"),
        (["invert", "photo.png", "--prompt", "x", "-o", "no/where.safetensors"], "no/where"),
        (["invert", "photo.png", "--prompt", "circle " * 100, "--steps", "2"], "77"),
        (["invert", "photo.png", "--prompt", "x", "-o", "pic.png"], ".safetensors"),
        (["edit", "photo.png", "--target", "x"], "photo.png"),
        (["edit", "cat.safetensors", "--target", TARGET, "-o", "dog.gif"], "dog.gif"),
        (["edit", "nothing.safetensors", "--target", "x"], "nothing.safetensors"),
        (["edit", "cat.safetensors", "--target", TARGET, "--blend", "unicorn"], "unicorn"),
        (["edit", "cat.safetensors", "--target", TARGET, "--weight", "unicorn=2"], "unicorn"),
        (["edit", "cat.safetensors", "--target", TARGET, "--weight", "blue=very"], "very"),
        (["edit", "cat.safetensors", "--target", TARGET, "--weight", "blue=nan"], "blue=nan"),
        (["edit", "cat.safetensors", "--target", TARGET, "--kind", "magic"], "magic"),
        (["edit", "cat.safetensors", "--target", TARGET, "--cross-replace-steps", "2"], "2"),
        (["edit", "cat.safetensors", "--target", TARGET, "--model", "random:sd9"], "sd9"),
    ],
)
def test_wrong_input_gets_one_sentence_and_leaves_nothing(folder, inverted, arguments, named):
    before = {path.name for path in folder.iterdir()}
    done = pivotal(*arguments, "--quiet", cwd=folder)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert named in done.stderr
    assert not done.stdout
    assert {path.name for path in folder.iterdir()} == before


def test_a_full_device_gets_one_sentence(folder, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr("pivotal.engine.load", full)
    done = pivotal("invert", "photo.png", "--prompt", PROMPT, cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("pivotal: CUDA out of memory")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["invert", "edit", "demo"])
def test_every_help_has_an_example(command, tmp_path):
    done = pivotal(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"pivotal {command}" in done.stdout


def test_a_shell_sees_the_exit_code_and_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pivotal", "edit", "nothing.safetensors", "--target", "x"],
        capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("pivotal: ")
    assert "nothing.safetensors" in done.stderr
