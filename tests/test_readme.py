"""What the README says, run."""

import contextlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from pivotal.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def home(tmp_path):
    pixels = np.full((64, 64, 3), 128, np.uint8)
    pixels[20:44, 20:44] = (220, 40, 40)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    with contextlib.chdir(tmp_path):
        yield tmp_path


@pytest.mark.parametrize("code", blocks("python"))
def test_every_python_block_runs(home, code):
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert (home / "blue.png").is_file()


def commands():
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "pivotal":
                yield words[1:]


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_and_option_exists(words):
    command = get_command(app).commands[words[0]]
    context = command.make_context(words[0], words[1:])
    assert context.params


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert named
    assert named <= targets


def test_every_room_exists():
    for path in re.findall(r"`((?:engine|kernels|benchmarks)/[\w/.]+)`", README):
        assert (ROOT / path).exists(), path
