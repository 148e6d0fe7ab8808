import json

import pytest

from pivotal.bench.errors import ResultsError
from pivotal.bench.rows import append, latest, read, timed_keys
from pivotal.code_version import whole_code


def test_a_line_torn_by_a_crash_spoils_no_other(tmp_path, row):
    path = tmp_path / "cpu" / "bench.jsonl"
    append(path, row([1.0], "a"))
    with path.open("a") as file:
        file.write('{"schema": 1, "suite": "un')
    append(path, row([1.0], "b"))
    assert [each["case"] for each in read(path)] == ["a", "b"]
    assert [each["case"] for each in read(tmp_path)] == ["a", "b"]


def test_a_commits_rows_can_be_asked_for_alone(tmp_path, row):
    path = tmp_path / "bench.jsonl"
    append(path, row([1.0], commit="aaa1111"))
    append(path, row([2.0], commit="bbb2222"))
    append(path, {"benchmark": "another program's"})
    (only,) = read(path.with_name("bench.jsonl@bbb2"))
    assert only["samples"] == [2.0]
    with pytest.raises(ResultsError, match="no rows"):
        read(path.with_name("bench.jsonl@ccc"))
    with pytest.raises(ResultsError, match="does not exist"):
        read(tmp_path / "none")


def test_no_row_holds_what_json_has_no_word_for(tmp_path, row):
    with pytest.raises(ValueError, match="JSON"):
        append(tmp_path / "bench.jsonl", row([float("nan")]))


def test_the_last_row_of_a_case_stands_even_if_it_failed_but_not_if_it_was_left_out(row):
    left_out = {**row([3.0]), "status": "not measured"}
    (only,) = latest([left_out, row([1.0]), row([2.0]), left_out]).values()
    assert only["samples"] == [2.0]
    failed = {**row([3.0]), "status": "failed"}
    (only,) = latest([row([1.0]), row([2.0]), failed, left_out]).values()
    assert only["status"] == "failed"


def test_what_this_code_has_timed_is_known_and_what_another_has_is_not(tmp_path, row):
    path = tmp_path / "bench.jsonl"
    assert timed_keys(path) == set()
    mine = row([1.0], "mine")
    mine["environment"]["code"] = whole_code()
    for each in (mine, row([1.0], "old"), {**mine, "case": "failed", "status": "failed"}):
        append(path, each)
    (key,) = timed_keys(path)
    assert json.loads(key)[1] == "mine"


@pytest.mark.parametrize("source", ["editing/edit.py", "driver.py", "bench/measuring.py"])
def test_a_change_to_any_source_is_another_code(tmp_path, monkeypatch, source):
    for package in ("pivotal", "pivotal_kernels"):
        (tmp_path / package).mkdir()
    path = tmp_path / "pivotal" / source
    path.parent.mkdir(exist_ok=True)
    path.write_text("before")
    monkeypatch.setattr("pivotal.code_version.resources.files", lambda package: tmp_path / package)
    before = whole_code()
    assert whole_code() == before
    path.write_text("after")
    assert whole_code() != before
