"""Plots of results, each as one SVG text."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any

from pivotal.bench.errors import require_extra
from pivotal.bench.rows import Row

Figure = tuple[str, str]
"""A title and an SVG."""

# Paul Tol's bright scheme, which colour-blind readers tell apart.
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_STYLES = ("-", "--", ":", "-.")


def plots(rows: Sequence[Row]) -> Iterator[Figure]:
    """Those plots for which there are rows; every figure is of timed rows alone."""
    require_extra("matplotlib", what="a report's plots")
    timed = [row for row in rows if row["status"] == "timed"]
    for title, draw, chosen in (
        ("Ladder: seconds with each step added", _ladder, _of(timed, "ladder")),
        ("Latency by rows in a batch", _latency, _of(timed, "unet")),
        ("Quality against seconds", _quality, _judged(timed)),
        ("Roofline", _roofline, [r for r in timed if r.get("flops")]),
        ("Peak memory", _memory, [r for r in timed if r.get("peak_bytes")]),
    ):
        if chosen:
            yield title, _svg(draw, chosen)


def _of(rows: Sequence[Row], suite: str) -> list[Row]:
    return [row for row in rows if row["suite"] == suite]


def _judged(rows: Sequence[Row]) -> list[Row]:
    return [row for row in _of(rows, "methods") if "psnr" in row["check"]]


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
    """Each kind under its own first rung, which the others are so many times faster than."""
    place, names = 0.0, []
    for kind, colour in zip(_kinds_of(rows), cycle(_COLOURS), strict=False):
        found = [row for row in rows if row["settings"].get("kind") == kind]
        places = [place + index for index in range(len(found))]
        middles = [row["seconds"]["p50"] for row in found]
        low, high = ([row["seconds"][end] for row in found] for end in ("low", "high"))
        errors = [[m - at for m, at in zip(middles, low, strict=True)],
                  [at - m for m, at in zip(middles, high, strict=True)]]  # fmt: skip
        axes.barh(places, middles, xerr=errors, color=colour, ecolor="#888888", label=kind)
        for y, row, end in zip(places, found, high, strict=True):
            faster = middles[0] / row["seconds"]["p50"]
            told = f"x {faster:.2f}" + _decibels(row) + (", noisy" if row["noisy"] else "")
            axes.annotate(told, (end, y), textcoords="offset points", xytext=(5, 0), va="center")
        names += [(y, row["case"]) for y, row in zip(places, found, strict=True)]
        place += len(found) + 0.7
    axes.set_yticks([y for y, _ in names], [name for _, name in names])
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel("seconds, median and 95 % interval; how many times faster than the first; dB")
    if len(_kinds_of(rows)) > 1:
        axes.legend(loc="lower right")


def _kinds_of(rows: Sequence[Row]) -> list[Any]:
    return list(dict.fromkeys(row["settings"].get("kind") for row in rows))


def _decibels(row: Row) -> str:
    return f", {row['check']['psnr']:.1f} dB" if "psnr" in row["check"] else ""


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
    ticks = sorted({int(row["settings"]["rows"]) for row in rows})
    axes.set_xlabel("rows")
    axes.set_ylabel("seconds, median and 95 % interval")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")  # the bundled model and SDXL are a thousand apart
    axes.set_xticks(ticks, [str(each) for each in ticks])
    _beside(axes)


def _quality(axes: Any, rows: Sequence[Row]) -> None:
    """A mark for each method, named beside the plot: many lie on one another."""
    for index, row in enumerate(rows):
        marker = _MARKERS[index // len(_COLOURS) % len(_MARKERS)]
        x, y = row["seconds_per_image"], row["check"]["psnr"]
        span = [[max(x - row["seconds"]["low"], 0)], [max(row["seconds"]["high"] - x, 0)]]
        axes.errorbar(x, y, xerr=span, marker=marker, linestyle="none", label=row["case"],
                      color=_COLOURS[index % len(_COLOURS)], elinewidth=0.8)  # fmt: skip
    bound = max(row["check"]["vae_psnr"] for row in rows)
    axes.axhline(bound, color="#888888", linestyle="--", label="the autoencoder alone")
    axes.set_xscale("log")
    _plain(axes.xaxis)
    axes.set_xlabel("seconds an image")
    axes.set_ylabel("decibels, sampled back")
    _beside(axes)


def _plain(axis: Any) -> None:
    """Numbers as people write them, at 1, 2 and 5 of each power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _beside(axes: Any) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def _roofline(axes: Any, rows: Sequence[Row]) -> None:
    """Achieved FLOP/s over FLOPs for each byte that must move, under the runs' own ceilings: a roof
    for each dtype, a colour for each suite.
    """
    intensities = [row["flops"] / row["least_bytes"] for row in rows]
    suites = dict.fromkeys(row["suite"] for row in rows)
    for suite, colour in zip(suites, cycle(_COLOURS), strict=False):
        found = _of(rows, suite)
        axes.plot(
            [row["flops"] / row["least_bytes"] for row in found],
            [row["flops_per_second"] for row in found],
            "o",
            color=colour,
            label=suite,
        )
    dtypes = dict.fromkeys(row["settings"].get("dtype", "float32") for row in rows)
    for dtype, style in zip(dtypes, cycle(_STYLES), strict=False):
        alike = [row for row in rows if row["settings"].get("dtype", "float32") == dtype]
        flops = max(row["ceilings"]["flops_per_second"] for row in alike)
        bandwidth = max(row["ceilings"]["bytes_per_second"] for row in alike)
        ridge = flops / bandwidth
        ends = [min(ridge, *intensities) / 2, ridge, 2 * max(ridge, *intensities)]
        axes.plot(ends, [min(flops, bandwidth * each) for each in ends], style, color="#444444",
                  label=f"this machine's ceilings, {dtype}")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOPs a byte")
    axes.set_ylabel("FLOP/s")
    _beside(axes)


def _memory(axes: Any, rows: Sequence[Row]) -> None:
    largest = sorted(rows, key=lambda row: -int(row["peak_bytes"]))[:16]
    names = [f"{row['suite']}: {row['case']}" for row in largest]
    bars = axes.barh(names, [row["peak_bytes"] / 1e6 for row in largest], color=_COLOURS[0])
    axes.bar_label(bars, fmt="%.3g", padding=3)
    axes.set_xscale("log")  # the bundled model and SDXL are a hundred apart
    _plain(axes.xaxis)
    axes.margins(x=0.1)
    axes.invert_yaxis()
    axes.set_xlabel("MB at once, beyond the weights")
