"""Every command's help: its example, run; and what the shell completes."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from typer.main import get_command

from pivotal.cli import app
from pivotal.cli.completion import DTYPES, KINDS, MODELS, POLICIES, method_names
from pivotal.editing import alignment
from pivotal.images import FitPolicy
from pivotal.inversion import registry
from pivotal.model.families import FAMILIES
from pivotal.model.located import BUNDLED
from pivotal.runtime.precision import NAMED as LOADABLE

EXAMPLE = re.compile(r"`(pivotal [^`]+)`")


def commands(group=None, words=()):
    """All commands, families of commands too, by their words."""
    group = group or get_command(app)
    yield words, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*words, name))


COMMANDS = dict(commands())


def examples(command):
    help_text = f"{command.help or ''} {command.epilog or ''}"
    return [" ".join(each.split()) for each in EXAMPLE.findall(help_text)]


def command_of(words):
    """The command that a line calls."""
    return next(COMMANDS[tuple(words[:n])] for n in (2, 1) if tuple(words[:n]) in COMMANDS)


EXAMPLES = [line for command in COMMANDS.values() for line in examples(command)]
SHOWN_ELSEWHERE = (
    "demo", "invert", "edit", "bench", "profile", "eval", "generate", "style", "compare",
)  # fmt: skip
# They trace five networks or build engines of them, or count SDXL's memory.
SLOW = ("pivotal export", "pivotal plan")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_help_has_an_example_of_its_own(pivotal, tmp_path, words):
    done = pivotal(*words, "--help", cwd=tmp_path)
    assert done.returncode == 0
    own = " ".join(("pivotal", *words))
    assert any(line.startswith(own) for line in examples(COMMANDS[words]))
    assert f"Example: {own}" in " ".join(done.stdout.split())


@pytest.fixture(scope="session")
def files(tmp_path_factory, pivotal, prepared):
    """What the examples take: photographs, an inversion of "a cat on a sofa", two benchmarks."""
    folder = tmp_path_factory.mktemp("examples")
    for name in ("photo.jpg", "a.jpg", "b.jpg"):
        shutil.copy(prepared / "photo.png", folder / name)
    made = pivotal(
        "invert", "photo.jpg", "--prompt", "a cat on a sofa", "-o", "cat.safetensors",
        "--method", "ddim", "--steps", 2, cwd=folder,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    timed = pivotal(
        "bench", "--suite", "kernels", "--rounds", 1, "--seconds", 0, "--results", "kept",
        cwd=folder,
    )  # fmt: skip
    assert timed.returncode == 0, timed.stderr
    for name in ("before.jsonl", "after.jsonl"):
        shutil.copy(folder / "kept" / "cpu" / "bench.jsonl", folder / name)
    return folder


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, marks=pytest.mark.slow if line.startswith(SLOW) else ())
        for line in sorted(set(EXAMPLES))
    ],
)
def test_every_example_runs_and_prints_one_json_object_if_asked(pivotal, files, tmp_path, line):
    words = shlex.split(line)[1:]
    command = command_of(words)
    options = {opt for each in command.params for opt in each.opts}
    few = ["--steps", "1" if words[0] == "eval" else "2"] if "--steps" in options else []
    if "--rounds" in options and "--rounds" not in words:
        few += ["--rounds", "1"]
    if words[0] == "invert" and "--method" not in words:
        few += ["--option", "inner_steps=1"]
    shown, asked = (shutil.copytree(files, tmp_path / name) for name in ("shown", "asked"))
    if words[0] == "invert":
        for folder in (shown, asked):
            (folder / "cat.safetensors").unlink()
    if line.startswith("pivotal edit photo.safetensors"):
        for folder in (shown, asked):
            (folder / "cat.safetensors").rename(folder / "photo.safetensors")
    if words[0] not in SHOWN_ELSEWHERE:
        done = pivotal(*words, *few, cwd=shown)
        assert done.returncode == 0, done.stderr
    done = pivotal(*words, *few, "--json", cwd=asked)
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)
    assert len(done.stdout.splitlines()) == 1


def test_what_the_shell_offers_is_what_there_is():
    assert method_names() == tuple(registry.METHODS)
    random = {f"random:{each.name}" for each in FAMILIES.values() if each.architecture}
    assert set(MODELS) == {*BUNDLED, *random}
    assert set(DTYPES) == set(LOADABLE)
    assert set(POLICIES) == set(FitPolicy.__args__)
    assert set(KINDS) == {"auto", *alignment.KINDS}


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("pivotal rec", ["reconstruct"]),
        ("pivotal invert --method ddi", ["ddim"]),
        ("pivotal generate --model random:sdx", ["random:sdxl"]),
        ("pivotal invert --dtype bf", ["bfloat16"]),
        ("pivotal cache g", ["gc"]),
    ],
)
def test_the_shell_completes(pivotal, tmp_path, monkeypatch, typed, offered):
    monkeypatch.setenv("_PIVOTAL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    done = pivotal(cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.split() == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_printed(pivotal, tmp_path, monkeypatch, shell):
    monkeypatch.setenv("_PIVOTAL_COMPLETE", f"source_{shell}")
    done = pivotal(cwd=tmp_path)
    assert done.returncode == 0
    assert f"_PIVOTAL_COMPLETE=complete_{shell}" in done.stdout


def test_help_and_version_need_neither_torch_nor_the_network(tmp_path):
    code = (
        "import sys, socket\n"
        "socket.socket.connect = None\n"
        "from pivotal.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'numpy', 'diffusers'} & set(sys.modules), sorted(sys.modules)\n"
    )
    for arguments in (["--version"], ["--help"], ["edit", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True, text=True, cwd=tmp_path, timeout=180, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
