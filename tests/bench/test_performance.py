"""The README's performance section is what the results say."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def performance(monkeypatch):
    path = ROOT / "benchmarks" / "performance.py"
    spec = importlib.util.spec_from_file_location("performance_section", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_not_stale(performance, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["performance.py", "--check"])
    performance.main()


def test_a_stale_readme_is_told(performance, monkeypatch, tmp_path):
    stale = tmp_path / "README.md"
    stale.write_text((ROOT / "README.md").read_text().replace("| unet |", "| unet, by hand |", 1))
    monkeypatch.setattr(performance, "README", stale)
    monkeypatch.setattr(sys, "argv", ["performance.py", "--check"])
    with pytest.raises(SystemExit, match=r"stale: README\.md; run"):
        performance.main()


def test_a_stale_report_is_told(performance, monkeypatch, tmp_path):
    (tmp_path / "benchmarks.md").write_text("an older report")
    monkeypatch.setattr(performance, "DOCS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["performance.py", "--check"])
    with pytest.raises(SystemExit, match=r"stale: docs/benchmarks\.md; run"):
        performance.main()


def test_every_timed_row_is_shown_and_what_was_not_timed_says_why(performance, row):
    rows = [row([1.0] * 8, "quick"), {**row([1.0] * 8, "absent"), "status": "not measured",
                                      "reason": "a CUDA device is needed"}]  # fmt: skip
    made = performance.section(rows)
    assert "| edits | quick | 1 s | ± 0% | - | - |" in made
    assert "Not timed (a CUDA device is needed): edits: absent." in made
    assert "Not measured: anything on a GPU." in made
