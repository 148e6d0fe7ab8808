"""`pivotal plan` says what jobs need, from config files alone."""

import json

import pytest

from pivotal.cli import main
from pivotal.cli.values import parse_bytes


def planned(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "--method", "ddim", "--steps", "2", "--json", *words])
    said = capsys.readouterr()
    return stop.value.code, json.loads(said.out)["plans"] if said.out else said.err


def test_it_plans_an_inversion_an_edit_and_a_picture(capsys):
    code, plans = planned(capsys, "--memory-limit", "24MB")
    assert code == 0
    assert [each["rows"] for each in plans] == [1, 4, 2]
    assert all(each["fits"] is (each["peak"] <= 24_000_000) for each in plans)
    assert all(each["limit"] == 24_000_000 for each in plans)


def test_a_person_gets_a_table(pivotal, tmp_path):
    done = pivotal("plan", "--method", "ddim", "--steps", 2, cwd=tmp_path)
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("a row", "at most", "generating")), done


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--memory-limit", "much"], "--memory-limit 'much': write a size as 500MB or 2GB"),
        (["--memory-limit", "0"], "more than nothing is needed"),
        (["--size", "65x64"], "multiples of 4 are possible"),
        (["--images", "0"], "images=0; at least 1"),
        (["--dtype", "int4"], "accepted are float32, bfloat16"),
    ],
)
def test_wrong_input_gets_one_sentence(capsys, words, sentence):
    code, said = planned(capsys, *words)
    assert code == 2
    assert sentence in said
    assert len(said.strip().splitlines()) == 1


def test_bytes_are_named_by_their_option():
    assert parse_bytes("8GB") == 8 * 10**9
    with pytest.raises(ValueError, match="--memory-limit 'x'"):
        parse_bytes("x", "--memory-limit")
