"""Results for people: a self-contained page with plots, and the same tables as markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from pivotal.bench.plots import plots
from pivotal.bench.rows import Row, latest
from pivotal.bench.tables import HEADINGS, cells

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;"
    "color:#222;background:#fff}table{border-collapse:collapse;width:100%;font-size:13px}"
    "td,th{border-bottom:1px solid #ddd;padding:3px 8px;text-align:left;vertical-align:top}"
    "tr>:nth-child(n+3):nth-child(-n+9):not([colspan]){text-align:right;white-space:nowrap;"
    "font-variant-numeric:tabular-nums}.absent{color:#777}h2{border-bottom:2px solid #4477aa}"
    "svg{max-width:100%;height:auto}ul{font-size:13px;padding-left:1.2em}code{font-size:12px}"
)
_NOTES = (
    "Seconds are medians of calls that took turns with the other cases of their group; ± is half "
    "the 95 % interval. Calls beside which other work, or another guest of the same host, had the "
    "processor are left out (on Linux, which tells of them). Roofline: the least time that the "
    "machine's own ceilings, measured in the same run, allow for the same operations, as a share "
    "of the time taken; operations of compiled and exported networks are counted as torch runs "
    "them eagerly. Peak memory is beyond the weights. GB/s are of all that operations read and "
    "write one by one, caches or not.",
    "On a CPU nothing here says how a GPU would do: launch costs, half precision, graphs and power "
    "mean something on a GPU only.",
)


def devices(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Each device's name, and the last rows of its cases."""
    for name in dict.fromkeys(row["device"] for row in rows):
        yield name, list(latest(row for row in rows if row["device"] == name).values())


def markdown(rows: Sequence[Row]) -> str:
    """A table for each device, and where it was measured."""
    parts = ["# Benchmarks"]
    for name, found in devices(rows):
        parts += [f"## {name}", machine(found), table(found)]
    return "\n\n".join([*parts, *_NOTES]) + "\n"


def table(rows: Sequence[Row]) -> str:
    """Markdown, a row each."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *(cells(row) for row in rows)]
    return "\n".join("| " + " | ".join(_escaped(line)) + " |" for line in lines)


def _escaped(line: Sequence[str]) -> list[str]:
    return [" ".join(cell.replace("|", "\\|").split()) for cell in line]


def machine(rows: Sequence[Row]) -> str:
    """Where the rows were measured and by what: a sentence for each run that they come from."""
    return " ".join(f"`{command}` {told}" for command, told in _runs(rows))


def _runs(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Each run's command, and on what, by what and when it was measured; the oldest first."""
    runs = {row["run"]: row["environment"] for row in rows}
    for when, where in sorted(runs.items()):
        yield str(where["command"]), _run(when, where)


def _run(when: str, where: Mapping[str, Any]) -> str:
    gpu = where.get("gpu", {})
    what = gpu.get("name", where["cpu"])
    driver = f", driver {gpu['driver']}" if "driver" in gpu else ""
    code = f"commit {where['commit']}{' with changes' if where['dirty'] else ''}"
    if where["commit"] is None:
        code = f"code {where['code']}"
    return (
        f"on {what}{driver}, threads: {where['threads']}, torch "
        f"{where['versions']['torch']}, {code}, load average {where['load_average']:.1f}, {when}."
    )


def html(rows: Sequence[Row]) -> str:
    """One page without anything to fetch."""
    body = ["<h1>Benchmarks</h1>"]
    for name, found in devices(rows):
        runs = (f"<li><code>{escape(run)}</code> {escape(told)}</li>" for run, told in _runs(found))
        body += [f"<h2>{escape(name)}</h2>", f"<ul>{''.join(runs)}</ul>"]
        for title, svg in plots(found):
            body.append(f"<h3>{escape(title)}</h3>{svg}")
        heads = "".join(f"<th>{escape(each)}</th>" for each in HEADINGS)
        body.append(f"<table><tr>{heads}</tr>{''.join(_line(row) for row in found)}</table>")
    body += [f"<p>{escape(note)}</p>" for note in _NOTES]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>pivotal: benchmarks"
        f"</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _line(row: Row) -> str:
    """A row of the page's table; what was not timed has its reason across all figures' cells."""
    told = [escape(cell) for cell in cells(row)]
    if row["status"] == "timed":
        return "<tr>" + "".join(f"<td>{cell}</td>" for cell in told) + "</tr>"
    suite, case, reason = told[:3]
    wide = len(HEADINGS) - 2
    return f"<tr class='absent'><td>{suite}<td>{case}<td colspan='{wide}'>{reason}</tr>"
