import subprocess

import pytest

from pivotal.bench import environment as module


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository laid out as ours, in which the measuring code seems to lie."""

    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    for name in ("engine/environment.py", "benchmarks/results/cpu/bench.jsonl", "README.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("first\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "engine/environment.py"))
    return tmp_path


def dirty():
    return module.environment(module.torch.device("cpu"))["dirty"]


def test_where_results_go_is_no_part_of_the_command():
    words = ["python", "ladder.py", "--results", "/home/someone", "--steps", "2"]
    found = module.environment(module.torch.device("cpu"), words)
    assert found["command"] == "python ladder.py --steps 2"


def test_changed_code_is_dirty_and_new_results_are_not(repository):
    assert dirty() is False
    (repository / "benchmarks/results/cpu/bench.jsonl").write_text("first\nsecond\n")
    (repository / "README.md").write_text("another table\n")
    assert dirty() is False
    (repository / "engine/environment.py").write_text("changed\n")
    assert dirty() is True
