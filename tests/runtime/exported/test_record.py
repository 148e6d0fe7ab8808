"""The command that an export's errors name: a shell takes it as it stands."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from pivotal.runtime.exported.record import EngineFacts

FACTS = EngineFacts("tensorrt_rtx", "1.7", ("89", "120"), (1, 4), False, False, ())


def words(command):
    assert command[0] == command[-1] == "`"
    return shlex.split(command[1:-1])


def test_a_command_survives_the_shell_with_spaces_in_all_names(small):
    record = replace(
        small.record, model="my models/a b", additions=("lora in k.safetensors:0.8", "vae fine")
    )
    assert words(record.again(Path("my exports/a b"))) == [
        "pivotal", "export", "onnx", "--model", "my models/a b", "--dtype", "float32",
        "--lora", "in k.safetensors:0.8", "--vae", "fine", "--rows", "1:6",
        "--height", "16", "--width", "16", "-o", "my exports/a b", "--force",
    ]  # fmt: skip
    assert words(record.again())[-2:] == ["-o", "DIR"]


@pytest.mark.parametrize(
    ("refittable", "stripped", "options"),
    [
        (False, False, set()),
        (True, False, {"--refit"}),
        (False, True, {"--strip-weights"}),
        (True, True, {"--refit", "--strip-weights"}),
    ],
)
def test_a_command_builds_engines_with_the_options_they_had(small, refittable, stripped, options):
    engine = replace(FACTS, refittable=refittable, stripped=stripped)
    found = words(replace(small.record, engine=engine).again())
    assert found[2] == "tensorrt"
    assert [found[i + 1] for i, word in enumerate(found) if word == "--sm"] == ["89", "120"]
    assert [found[i + 1] for i, word in enumerate(found) if word == "--bucket"] == ["1", "4"]
    assert {"--refit", "--strip-weights"} & set(found) == options
