"""The README's performance section and the report, generated from the harness's rows.

    python benchmarks/performance.py [--check]

Writes the tables between two markers of README.md, and docs/benchmarks.html and .md. --check
writes nothing and ends with 1 where the README or docs/benchmarks.md is stale.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pivotal.bench.report import devices, html, machine, markdown
from pivotal.bench.rows import Row, read
from pivotal.bench.tables import quality, span

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
DOCS = ROOT / "docs"
BEGIN = "<!-- performance: made by `python benchmarks/performance.py`, not by hand -->"
END = "<!-- performance: end -->"

HEADINGS = ("suite", "case", "seconds", "95 %", "roofline", "quality")


def section(rows: Sequence[Row]) -> str:
    """A table for each device, with what could not be measured below it."""
    parts = []
    for name, found in devices(rows):
        timed = [row for row in found if row["status"] == "timed"]
        lines = [HEADINGS, ("---",) * len(HEADINGS), *(_cells(row) for row in timed)]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts += [f"**{name}**: {machine(found)}", table, *_lacking(found)]
    if not any("cuda" in name or "nvidia" in name for name, _ in devices(rows)):
        parts.append("Not measured: anything on a GPU.")
    return "\n\n".join(parts)


def _cells(row: Row) -> tuple[str, ...]:
    seconds = row["seconds"]
    half = (seconds["high"] - seconds["low"]) / 2 / seconds["p50"]
    percent = row.get("percent_of_roofline")
    return (
        row["suite"],
        row["case"].replace("|", "\\|"),
        span(seconds["p50"]),
        f"± {half:.0%}" + (" (noisy)" if row["noisy"] else ""),
        "-" if percent is None else f"{percent:.0f} %",
        quality(row),
    )


def _lacking(rows: Sequence[Row]) -> Iterator[str]:
    """What was not timed, and why, by reason."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] != "timed":
            reason = str(row.get("reason") or row.get("error"))
            reasons.setdefault(reason, []).append(f"{row['suite']}: {row['case']}")
    for reason, names in reasons.items():
        yield f"Not timed ({reason}): {'; '.join(names)}."


def renewed(text: str, made: str) -> str:
    """The README with a new section. Raises ValueError for one without the markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="only say what is stale")
    given = parser.parse_args()
    rows, text = read(RESULTS), README.read_text("utf-8")
    wanted = renewed(text, section(rows))
    if given.check:
        shown = (DOCS / "benchmarks.md").read_text("utf-8")
        stale = {"README.md": wanted != text, "docs/benchmarks.md": markdown(rows) != shown}
        if any(stale.values()):
            names = ", ".join(name for name, is_stale in stale.items() if is_stale)
            sys.exit(f"stale: {names}; run python benchmarks/performance.py")
        return
    README.write_text(wanted, "utf-8")
    (DOCS / "benchmarks.html").write_text(html(rows), "utf-8")
    (DOCS / "benchmarks.md").write_text(markdown(rows), "utf-8")


if __name__ == "__main__":
    main()
