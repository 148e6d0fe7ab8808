"""The README's measured methods are those of the results, made by a command."""

import pytest

from methods import readme
from methods.results import rows_of


def row(label, scale, **more):
    return {
        "study": "table", "label": label, "method": "ddim", "scale": scale, "scenes": 8,
        "steps": 50, "vae_db": 33.0, "picture_db": 20.126, "latents_db": 15.0,
        "seconds_invert": 2.0, "rows_invert": 50.0, "rows_backward": 0.0, "outside_db": 30.0,
        "each": [{"kind": "colour", "edit": {"success": n > 0}} for n in range(4)], **more,
    }  # fmt: skip


def test_the_readme_is_not_stale():
    text = readme.README.read_text()
    assert readme.with_table(text, readme.current()) == text


def test_the_committed_rows_are_readable_and_without_failures():
    assert readme.RESULTS.exists()
    for found in rows_of(readme.RESULTS):
        assert len(found["each"]) == found["count"]
        assert found["commit"]


def test_rows_come_in_the_trials_order_with_what_they_lack():
    made = readme.table(
        [
            row("direct, at 3", 3.0, latents_db=200.0),
            row("null-text", 7.5, rows_backward=400.0),
            row("DDIM, 1 in, 7.5 out", 7.5),
            row("no longer a trial", 7.5),
        ]
    )
    lines = [line for line in made.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines] == [
        "| method", "| DDIM, 1 in, 7.5 out", "| null-text", "| method", "| direct, at 3",
    ]  # fmt: skip
    assert "| 50 (400) | 3 of 4 / - | 30.0 | 8 |" in lines[2]
    assert "| exact |" in lines[4]
    assert "20.13 (33.00)" in lines[1]


def test_a_row_of_few_scenes_stands_beside_their_own_round_trip():
    few, many = row("direct", 7.5, vae_db=36.5, scenes=2), row("null-text", 7.5, vae_db=34.1)
    made = readme.table([few, many])
    assert "20.13 (36.50)" in made
    assert "20.13 (34.10)" in made


def test_the_table_goes_between_its_markers_and_nowhere_else():
    before = f"a\n{readme.BEGIN}\nold\n{readme.END}\nb\n"
    after = readme.with_table(before, "new")
    assert after == f"a\n{readme.BEGIN}\nnew\n{readme.END}\nb\n"
    with pytest.raises(ValueError, match="has no"):
        readme.with_table("a", "new")


def test_no_rows_of_these_weights_is_said():
    assert readme.table([]) == "Not measured on these weights."
