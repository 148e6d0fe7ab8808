import json

import pytest

from pivotal.bench.rows import append, read
from pivotal.cli import main

STEADY = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.01]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The command line in a folder of its own: exit code, stdout."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return call


def test_a_suite_is_measured_and_its_rows_are_kept_and_not_measured_twice(run, tmp_path):
    words = ("bench", "--suite", "kernels", "--seconds", 0, "--rounds", 1, "--json")
    code, out, err = run(*words, "--results", "kept")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert read(tmp_path / "kept" / "cpu" / "bench.jsonl") == sorted(rows, key=lambda r: r["time"])
    timed = [row for row in rows if row["status"] == "timed"]
    assert timed
    assert all(row["noisy"] == "1 samples; 6 are needed for an interval" for row in timed)
    assert {row["status"] for row in rows} <= {"timed", "not measured"}
    assert {"sdpa", "reference"} <= {row["settings"]["impl"] for row in timed}
    code, out, _ = run(*words, "--results", "kept", "--resume")
    assert not [row for row in json.loads(out)["rows"] if row["status"] == "timed"]


def test_compare_ends_with_1_where_something_is_slower(run, tmp_path, row):
    for name, factor in (("before", 1.0), ("same", 1.0), ("after", 1.2)):
        append(tmp_path / f"{name}.jsonl", row([factor * each for each in STEADY]))
    code, out, _ = run("bench", "compare", "before.jsonl", "same.jsonl")
    assert code == 0
    assert "no difference shown" in out
    code, out, _ = run("bench", "compare", "before.jsonl", "same.jsonl", "after.jsonl", "--json")
    assert code == 1
    found = json.loads(out)
    assert [each["cases"][0]["verdict"] for each in found["comparisons"]] == [
        "no difference shown", "slower"
    ]  # fmt: skip
    ratio = found["comparisons"][1]["cases"][0]["ratio"]
    assert 1.1 < ratio["low"] < 1.2 < ratio["high"] < 1.3


def test_a_report_is_a_page_and_markdown(run, tmp_path, row):
    append(tmp_path / "a.jsonl", row(STEADY))
    code, _, err = run("bench", "report", "a.jsonl", "-o", "out.html")
    assert code == 0, err
    assert "<table>" in (tmp_path / "out.html").read_text()
    assert "| edits | a | 1 s |" in (tmp_path / "out.md").read_text()
    code, _, err = run("bench", "report", "a.jsonl", "-o", "out.html")
    assert code == 2
    assert "exists" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--suite", "speed"], "suite 'speed' is unknown; accepted are kernels, unet"),
        (["--family", "sd9"], "random:sd9"),
        (["--family", "sd1", "--model", "shapes"], "give one of them"),
        (["--rounds", "0"], "fewest <= rounds"),
        (["--suite", "kernels", "--device", "foo"], "device='foo' is unknown"),
        (["--suite", "kernels", "--device", "cuda:99"], "device='cuda:99' is absent"),
        (["--suite", "kernels", "--dtype", "float31"], "dtype='float31' is unknown"),
        (["--suite", "kernels", "--dtype", "fp8"], "fp8"),
        (["--suite", "unet", "--exported", "nowhere"], "there is no folder 'nowhere'"),
        (["compare", "a.jsonl"], "at least two"),
        (["compare", "a.jsonl", "b.jsonl"], "does not exist"),
        (["report", "a.jsonl", "-o", "page.pdf"], "written as .html"),
    ],
)
def test_wrong_input_gets_a_sentence(run, words, sentence):
    code, _, err = run("bench", *words)
    assert code == 2
    assert sentence in " ".join(err.split())
    assert "Traceback" not in err
