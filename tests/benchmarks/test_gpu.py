"""The visit to a GPU: its commands are ones that there are, and one that fails stops no other."""

import json
import sys

import pytest
from typer.main import get_command

import gpu
from pivotal.cli import app


@pytest.mark.parametrize("values", [gpu.REAL, gpu.DRY], ids=["real", "dry"])
@pytest.mark.parametrize("part", gpu.PARTS, ids=lambda part: part.name)
def test_every_command_and_option_is_one_that_there_is(part, values, tmp_path):
    for words in gpu.commands(part, values, tmp_path):
        if words[1:3] == ["-m", "pivotal"]:
            name, *rest = words[3:]
            get_command(app).commands[name].make_context(name, list(rest))  # parses, runs nothing
        elif words[1].endswith(".py"):
            source = (gpu.ROOT / words[1]).read_text()
            for word in words[2:]:
                assert not word.startswith("--") or f'"{word}"' in source, word
        else:
            assert "pytest" in words


def test_what_fails_or_takes_too_long_or_is_not_there_stops_nothing(tmp_path, monkeypatch, capsys):
    parts = (
        gpu.Part("fails", 20, ("python -c raise(SystemExit(3))",)),
        gpu.Part("hangs", 0.5, ("python -c while(True):pass",)),
        gpu.Part("absent", 20, ("no-such-program-here --at-all",)),
        gpu.Part("works", 20, ("python -c print('{device}')", "python -c print({steps})")),
    )
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path / "out"), "--dry"])
    gpu.main()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [each["state"] for each in summary] == [
        "ended with 3",
        "ended after its 0 s",
        "no-such-program-here is not installed",
        "done",
        "done",
    ]
    assert str(tmp_path) not in json.dumps(summary)
    log = (tmp_path / "out" / "works.log").read_text().splitlines()
    assert [line for line in log if not line.startswith("$")] == ["cpu", "2"]
    assert "works: done" in capsys.readouterr().out


def test_nothing_begins_when_the_time_is_up(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "PARTS", (gpu.Part("late", 20, ("python -c print(1)",)),))
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path), "--minutes", "0.1"])
    gpu.main()
    (only,) = json.loads((tmp_path / "summary.json").read_text())
    assert only["state"] == "no time left"
    assert not (tmp_path / "late.log").exists()
