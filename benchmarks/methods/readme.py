"""The README's table of measured methods, generated from methods.jsonl between two markers.

    PYTHONPATH=benchmarks python -m methods.readme [--check]

Only rows of the bundled weights, and of each trial's options and edits, as they are now are shown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from methods.results import RESULTS, joined, rows_of, trial_of
from methods.table import asked_of
from methods.trials import STUDIES

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN = "<!-- methods: made by `python -m methods.readme`, not by hand -->"
END = "<!-- methods: end -->"
STEPS = 50
HEADER = (
    "method", "guidance", "picture (VAE), dB", "latents, dB", "seconds", "UNet rows (backward)",
    "colour / shape swaps", "outside, dB", "scenes",
)  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The table of joined rows in the trials' order, and a sentence on what it shows."""
    order = {trial.label: place for place, trial in enumerate(STUDIES["table"]())}
    known = sorted((row for row in rows if row["label"] in order), key=lambda r: order[r["label"]])
    if not known:
        return "Not measured on these weights."
    usual = [row for row in known if row["scale"] == 7.5 or row["label"] == "DDIM, 1 in, 1 out"]
    others = [row for row in known if row not in usual]
    steps = known[0]["steps"]
    said = (
        f"{steps} steps up and down. VAE: the autoencoder's own round trip of the row's scenes, "
        "the first so many; compare rows of as many scenes. Seconds and rows are of one image's "
        "inversion, in batches of two, on one thread of a shared machine. Swaps: edits that pass "
        "the oracle."
    )
    parts = [said, "", *_lines(usual)]
    if others:
        summary = "At 1, 3 and 5, where that is a method's range"
        parts += [
            "",
            f"<details><summary>{summary}</summary>",
            "",
            *_lines(others),
            "",
            "</details>",
        ]
    return "\n".join(parts)


def _lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    return lines + ["| " + " | ".join(_cells(row)) + " |" for row in rows]


def _cells(row: dict[str, Any]) -> list[str]:
    backward = f" ({row['rows_backward']:.0f})" if row["rows_backward"] else ""
    return [
        row["label"],
        f"{row['scale']:g}",
        f"{row['picture_db']:.2f} ({row['vae_db']:.2f})",
        "exact" if row["latents_db"] > 90 else f"{row['latents_db']:.1f}",
        f"{row['seconds_invert']:.1f}",
        f"{row['rows_invert']:.0f}{backward}",
        f"{_passed(row, 'colour')} / {_passed(row, 'shape')}",
        f"{row['outside_db']:.1f}",
        str(row["scenes"]),
    ]


def _passed(row: dict[str, Any], kind: str) -> str:
    """Edits of a kind that passed, of how many."""
    edits = [scene["edit"]["success"] for scene in row["each"] if scene["kind"] == kind]
    return f"{sum(edits)} of {len(edits)}" if edits else "-"


def with_table(readme: str, made: str) -> str:
    """A README's text with the table between its markers. Raises ValueError without markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README has no {BEGIN} .. {END}")
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


def fingerprint() -> str:
    """Of the bundled weights."""
    from pivotal.engine import Engine

    return Engine.load("shapes", device="cpu").model.fingerprint


def current() -> str:
    """The table that the README ought to hold now."""
    weights = {"fingerprint": fingerprint()}
    trials = [asked_of("table", trial, STEPS) for trial in STUDIES["table"]()]
    known = {trial_of({**asked, **weights}) for asked in trials}
    rows = rows_of(RESULTS, weights["fingerprint"])
    return table(joined(row for row in rows if trial_of(row) in known))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where it is stale")
    given = parser.parse_args()
    readme = README.read_text()
    wanted = with_table(readme, current())
    if given.check:
        return int(wanted != readme)
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
