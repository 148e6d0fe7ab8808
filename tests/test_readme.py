"""What the README says, run: every block of code, on the bundled model and in few steps."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from pivotal.cli import app, main
from pivotal.inversion.registry import METHODS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
LANGUAGES = re.findall(r"^```(\w*)$", README, re.MULTILINE)[::2]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def lines(block):
    """A shell block's commands, as words without comments and environment."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        if words:
            yield words


COMMANDS = [words for block in blocks("sh") for words in lines(block)]


def draw(path):
    pixels = np.full((64, 64, 3), 128, np.uint8)
    pixels[20:44, 20:44] = (220, 40, 40)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PIVOTAL_CACHE", str(tmp_path / "cache"))
    draw(tmp_path / "photo.png")
    with contextlib.chdir(tmp_path):
        yield tmp_path


def test_no_block_is_left_out():
    assert set(LANGUAGES) == {"sh", "toml", "python"}
    assert {words[0] for words in COMMANDS} == {"make", "pivotal", "python"}


@pytest.mark.parametrize("code", blocks("python"), ids=range(len(blocks("python"))))
def test_every_python_block_runs(home, code):
    before = set(home.iterdir())
    code = code.replace("num_inference_steps=10", "num_inference_steps=2")
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert set(home.iterdir()) > before


def local(toml):
    """A config with the bundled model on the CPU in place of what this machine may not have."""
    values = tomllib.loads(toml)
    assert {"model", "device", "dtype"} <= set(values)
    for key, value in (("model", "shapes"), ("device", "cpu"), ("dtype", "float32")):
        toml = re.sub(rf'^{key} = ".*"$', f'{key} = "{value}"', toml, flags=re.MULTILINE)
    assert tomllib.loads(toml)["model"] == "shapes"
    return toml


FEW = {"--steps": "2", "--seconds": "0", "--rounds": "1"}
SMALL = {"--size": "32x32"}  # where the README names no size


def run(words, few):
    with pytest.raises(SystemExit) as stop:
        main([*words, *few])
    return stop.value.code


def test_the_commands_of_each_tour_run_one_after_another(home, read_once):
    (toml,) = blocks("toml")
    (name,) = re.findall(r"^# (\S+\.toml)", toml)
    (home / name).write_text(local(toml))
    draw(home / "photo.jpg")
    for words in COMMANDS:
        if words[0] == "pivotal" and words[1] != "demo":
            command = get_command(app).commands[words[1]]
            options = {opt for each in command.params for opt in each.opts}
            asked = FEW if "--size" in words else FEW | SMALL
            few = [word for opt, n in asked.items() if opt in options for word in (opt, n)]
            if words[1] == "invert" and "--method" not in words:
                few += ["--option", "inner_steps=1"]
            assert run(words[1:], few) == 0, words
    made = {path.name for path in home.iterdir()}
    named = set(re.findall(r"`((?:star|cat)[\w-]*\.\w+)`", README))
    assert named
    assert named - {"star-edit-2.png"} <= made
    words = ["edit", "star.safetensors", "--target", "a blue star on a gray background"]
    assert run(words, []) == 0
    assert (home / "star-edit-2.png").is_file()


BENCHMARKS = [words for words in COMMANDS if words[0] == "python"]


@pytest.mark.parametrize("words", BENCHMARKS, ids=" ".join)
def test_every_benchmark_exists_with_the_options_named(words):
    file = f"benchmarks/{words[2].replace('.', '/')}.py" if words[1] == "-m" else words[1]
    source = (ROOT / file).read_text()
    for option in (word for word in words if word.startswith("--")):
        assert f'add_argument("{option}"' in source


@pytest.mark.slow
@pytest.mark.parametrize("words", BENCHMARKS, ids=" ".join)
def test_every_benchmark_starts(words):
    call = words[1:3] if words[1] == "-m" else words[1:2]
    environment = {**os.environ, "PYTHONPATH": "benchmarks", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *call, "--help"],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in words if word.startswith("--"))


def test_every_make_target_exists_and_make_can_read_it():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert named
    assert named <= targets
    if shutil.which("make") is None:
        pytest.skip("no make on this system")
    for target in named:
        done = subprocess.run(
            ["make", "--dry-run", target], capture_output=True, cwd=ROOT, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr


def test_every_option_and_command_named_in_the_text_exists():
    group = get_command(app)
    options = {
        opt
        for command in group.commands.values()
        for each in getattr(command, "commands", {"": command}).values()
        for param in each.params
        for opt in param.opts
    } | {opt for param in group.params for opt in param.opts}
    prose = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"`(--[a-z-]+)", prose))
    assert named
    assert named - {"--install-completion"} <= options
    assert set(re.findall(r"`pivotal ([a-z]+)", prose)) <= set(group.commands)


def test_every_room_exists():
    for path in re.findall(r"`((?:engine|kernels|benchmarks)/[\w/.]+)`", README):
        assert (ROOT / path).exists(), path


def test_every_method_is_in_the_table_with_its_paper():
    table = re.findall(r"^\| `([a-z-]+)` \| [^|]+ \| ([^|]+) \|", README, re.MULTILINE)
    assert table == [(method.name, method.paper) for method in METHODS.values()]


MIGRATION = re.search(r"^## Coming from another tool\n(.*?)^## ", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("tool", ["google/prompt-to-prompt", "diffusers", "A1111", "ComfyUI"])
def test_whoever_comes_from_another_tool_is_met(tool):
    assert f"| **{tool}**" in MIGRATION[1]


def test_every_option_that_is_named_to_them_belongs_to_a_method_that_is():
    from pivotal.inversion.registry import method_named

    for row in re.findall(r"^\| .*", MIGRATION[1], re.MULTILINE):
        methods = re.findall(r"--method ([a-z-]+)", row)
        for method in methods:
            assert method in METHODS
        tested = methods[:1] or ["null-text" if "inner_steps" in row else "k-euler"]
        for name, value in re.findall(r"--option (\w+)=([\w.-]+)", row):
            method_named(tested[0]).options_from({name: value})
