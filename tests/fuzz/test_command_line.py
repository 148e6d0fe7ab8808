"""Damaged files through the command line: exit code 2, one line, nothing left."""

import contextlib
import io
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pivotal.cli import main

PROMPT = "a red circle on a gray background"


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PIVOTAL_CACHE", str(folder))
    monkeypatch.setenv("COLUMNS", "100")


def picture():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def damaged():
    """Name to content: what a person may have on disk by accident or by malice."""
    whole = picture()
    random = np.random.default_rng(0)
    huge = bytearray(whole)
    huge[16:24] = struct.pack(">II", 100_000, 100_000)
    cases = {"empty.png": b"", "text.png": b"hello", "huge.png": bytes(huge),
             "pdf.png": b"%PDF-1.7", "noise.png": random.bytes(900)}  # fmt: skip
    cases |= {f"cut-{n}.png": whole[: n * len(whole) // 12] for n in range(1, 9)}
    return cases


def check(code, stdout, stderr, name):
    assert code == 2, stderr
    assert not stdout
    assert len(stderr.strip().splitlines()) == 1, stderr
    assert "Traceback" not in stderr
    assert name in stderr


def run(*arguments, cwd):
    out, err, code = io.StringIO(), io.StringIO(), 0
    captured = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with contextlib.chdir(cwd), captured[0], captured[1]:
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code or 0
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("name", damaged())
def test_a_damaged_image_ends_a_command_in_one_line(name, tmp_path):
    (tmp_path / name).write_bytes(damaged()[name])
    done = run("invert", name, "--prompt", PROMPT, "-o", "out.safetensors", cwd=tmp_path)
    check(*done, name)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", damaged())
def test_a_damaged_inversion_ends_a_command_in_one_line(name, tmp_path):
    name = name.replace(".png", ".safetensors")
    (tmp_path / name).write_bytes(damaged()[name.replace(".safetensors", ".png")])
    for words in (("edit", name, "--target", "a cat", "-o", "out.png"), ("reconstruct", name)):
        check(*run(*words, cwd=tmp_path), name)
        assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    "text",
    ["", "x", "[", "[edit]\nsteps = ", "a = 1\na = 2", "\0", "[invert]\nprompt = 3", "é = 1"],
)
def test_a_damaged_configuration_ends_a_command_in_one_line(text, tmp_path):
    (tmp_path / "bad.toml").write_text(text)
    code, _, stderr = run(
        "invert", "none.png", "--prompt", "x", "--config", "bad.toml", cwd=tmp_path
    )
    assert code == 2
    assert len(stderr.strip().splitlines()) == 1, stderr
    assert "bad.toml" in stderr or "none.png" in stderr
    assert os.listdir(tmp_path) == ["bad.toml"]


def test_a_real_process_ends_in_one_line_too(tmp_path):
    (tmp_path / "bad.toml").write_text("[")
    words = ("invert", "no.png", "--prompt", PROMPT, "--config", "bad.toml")
    done = subprocess.run(
        [sys.executable, "-m", "pivotal", *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    check(done.returncode, done.stdout, done.stderr, "bad.toml")
    assert os.listdir(tmp_path) == ["bad.toml"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cut-5.png", "huge.png", "text.png"])
def test_a_real_process_that_loads_a_model_ends_in_one_line_too(name, tmp_path):
    (tmp_path / name).write_bytes(damaged()[name])
    done = subprocess.run(
        [sys.executable, "-m", "pivotal", "invert", name, "--prompt", PROMPT],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    check(done.returncode, done.stdout, done.stderr, name)
    assert os.listdir(tmp_path) == [name]
