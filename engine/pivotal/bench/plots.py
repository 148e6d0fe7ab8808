"""Plots of results, each as one SVG text."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pivotal.bench.errors import require_extra
from pivotal.bench.rows import Row

Figure = tuple[str, str]
"""A title and an SVG."""


def plots(rows: Sequence[Row]) -> Iterator[Figure]:
    """Those plots for which there are rows; every figure is of timed rows alone."""
    require_extra("matplotlib", what="a report's plots")
    timed = [row for row in rows if row["status"] == "timed"]
    for title, draw, chosen in (
        ("Ladder: seconds with each step added", _ladder, _of(timed, "ladder")),
        ("Latency by rows in a batch", _latency, _of(timed, "unet")),
        ("Quality against seconds", _quality, [r for r in timed if "psnr" in r["check"]]),
        ("Roofline", _roofline, [r for r in timed if r.get("flops")]),
        ("Peak memory", _memory, [r for r in timed if r.get("peak_bytes")]),
    ):
        if chosen:
            yield title, _svg(draw, chosen)


def _of(rows: Sequence[Row], suite: str) -> list[Row]:
    return [row for row in rows if row["suite"] == suite]


def _svg(draw: Callable[[Any, Sequence[Row]], None], rows: Sequence[Row]) -> str:
    """Drawn without a display and without a date: equal rows give equal text."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context({"svg.hashsalt": "pivotal", "svg.fonttype": "none", "font.size": 9}):
        figure = Canvas(figsize=(8, 4.2), layout="constrained")
        axes = figure.add_subplot()
        draw(axes, rows)
        axes.spines[["top", "right"]].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    whole = text.getvalue()
    return whole[whole.index("<svg") :]


def _ladder(axes: Any, rows: Sequence[Row]) -> None:
    names = [row["case"] for row in rows]
    middles = [row["seconds"]["p50"] for row in rows]
    errors = [
        [row["seconds"]["p50"] - row["seconds"]["low"] for row in rows],
        [row["seconds"]["high"] - row["seconds"]["p50"] for row in rows],
    ]
    axes.barh(names, middles, xerr=errors, color="#4477aa")
    axes.invert_yaxis()
    axes.set_xlabel("seconds, median and 95 % interval")


def _latency(axes: Any, rows: Sequence[Row]) -> None:
    lines: dict[str, list[Row]] = {}
    for row in rows:
        given = row["settings"]
        side = "" if given["scale"] == 1 else f", sides x {given['scale']}"
        size = " at {}x{}".format(*given["size"]) if "size" in given else ""
        name = f"{given['model']}{size} {given['dtype']}, {given['work']}{side}, {given['backend']}"
        lines.setdefault(name, []).append(row)
    for name, found in lines.items():
        found.sort(key=lambda row: int(row["settings"]["rows"]))
        counts = [row["settings"]["rows"] for row in found]
        axes.plot(counts, [row["seconds"]["p50"] for row in found], marker="o", label=name)
        low, high = ([row["seconds"][end] for row in found] for end in ("low", "high"))
        axes.fill_between(counts, low, high, alpha=0.2)
    axes.set_xlabel("rows")
    axes.set_ylabel("seconds")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")  # the bundled model and SDXL are a thousand apart
    axes.legend()


def _quality(axes: Any, rows: Sequence[Row]) -> None:
    for row in rows:
        x, y = row["seconds_per_image"], row["check"]["psnr"]
        axes.plot(x, y, marker="o", color="#4477aa")
        axes.annotate(row["case"], (x, y), textcoords="offset points", xytext=(5, 4))
    bound = max(row["check"]["vae_psnr"] for row in rows)
    axes.axhline(bound, color="#cc6677", linestyle="--", label="the autoencoder alone")
    axes.set_xscale("log")
    axes.set_xlabel("seconds an image")
    axes.set_ylabel("decibels, sampled back")
    axes.legend()


def _roofline(axes: Any, rows: Sequence[Row]) -> None:
    """Achieved FLOP/s over FLOPs for each byte that must move, under the run's own ceilings."""
    for suite in dict.fromkeys(row["suite"] for row in rows):
        found = _of(rows, suite)
        axes.plot(
            [row["flops"] / row["least_bytes"] for row in found],
            [row["flops_per_second"] for row in found],
            "o",
            label=suite,
        )
    flops = max(row["ceilings"]["flops_per_second"] for row in rows)
    bandwidth = max(row["ceilings"]["bytes_per_second"] for row in rows)
    ridge = flops / bandwidth
    ends = [ridge / 100, ridge, max(100 * ridge, *(r["flops"] / r["least_bytes"] for r in rows))]
    axes.plot(ends, [min(flops, bandwidth * each) for each in ends], color="#cc6677",
              label="what this machine reaches")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOPs a byte")
    axes.set_ylabel("FLOP/s")
    axes.legend()


def _memory(axes: Any, rows: Sequence[Row]) -> None:
    largest = sorted(rows, key=lambda row: -int(row["peak_bytes"]))[:16]
    names = [f"{row['suite']}: {row['case']}" for row in largest]
    axes.barh(names, [row["peak_bytes"] / 1e6 for row in largest], color="#4477aa")
    axes.invert_yaxis()
    axes.set_xlabel("MB at once, beyond the weights")
