"""A plot for each study, from its rows. matplotlib (the extra `bench`) is imported when needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.trials import DERIVATIVES, OFFSETS, SCALES, UP

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Mapping[str, dict[str, Any]]
"""Joined rows by label."""


def draw(study: str, rows: Sequence[dict[str, Any]], folder: Path) -> Path | None:
    """A study's plot as PNG in a folder; None where there is no plot, or no row to show."""
    if study not in PLOTS or not rows:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    known = {row["label"]: row for row in rows if "error" not in row}
    PLOTS[study](figure, known)
    steps, scenes = rows[0]["steps"], max(row.get("scenes", 0) for row in rows)
    figure.suptitle(f"{study}: {steps} steps down, {scenes} scenes of `shapes`", fontsize=11)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{study}.png"
    figure.savefig(path, dpi=110)
    return path


def ddim(figure: Figure, rows: Rows) -> None:
    """Decibels against the guidance out; in at 1, or as high as out."""
    figure.set_size_inches(7, 4.2)
    axes = figure.subplots()
    for asked, style in (("destination", "-"), ("source", "--")):
        for name, colour in (("1 in", "tab:blue"), ("as much in", "tab:red")):
            points = []
            for down in SCALES:
                up = 1.0 if name == "1 in" else down
                label = f"{up:g} in, {down:g} out, asked at {asked}"
                if label in rows:
                    points.append((down, rows[label]["picture_db"]))
            shown = f"{name}, asked at the {asked}"
            axes.plot(*_columns(points), style, marker="o", color=colour, label=shown)
    _autoencoder(axes, rows)
    axes.set(xlabel="guidance out", ylabel="reconstruction, dB")
    axes.legend(fontsize=8)


def k_euler(figure: Figure, rows: Rows) -> None:
    """The noise's deviation and latents' decibels against the steps up, by derivative and grid."""
    figure.set_size_inches(9, 6.4)
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, grid in enumerate(("linear", "karras")):
        for name in DERIVATIVES:
            found = [(count, rows.get(f"{count} up, {name}, {grid}")) for count in UP]
            for place, figure_name in enumerate(("noise_std_ratio", "latents_db")):
                points = [(count, row[figure_name]) for count, row in found if row is not None]
                panels[place][column].semilogx(*_columns(points), marker="o", label=name)
        panels[0][column].set(title=f"{grid} grid")
        panels[0][column].axhline(1.0, color="grey", linewidth=0.8)
        panels[1][column].set(xlabel="steps up")
        panels[1][column].set_xticks(UP, [str(count) for count in UP])
        panels[1][column].set_xticks([], minor=True)
    panels[0][0].set(ylabel="noise deviation / sigma_max")
    panels[1][0].set(ylabel="reconstruction of latents, dB")
    panels[0][0].legend(title="derivative at", fontsize=8)


def finite_difference(figure: Figure, rows: Rows) -> None:
    """Decibels of latents by offset and guidance; a cross where a scene diverged."""
    figure.set_size_inches(7.5, 5.6)
    axes = figure.subplots()
    names = [
        "DDIM, asked at source", "DDIM, asked at destination", "none",
        *(f"offset {offset:g}" for offset in OFFSETS), "offset 0.25, from 0.3 on",
        "offset 0.25, every step", "frozen", "frozen, from 0.3 on", "frozen, every step", "exact",
        "exact, from 0.3 on",
    ]  # fmt: skip
    values = [
        [rows.get(f"{name}, at {scale:g}", {}).get("latents_db", float("nan")) for scale in SCALES]
        for name in names
    ]
    shown = [value for line in values for value in line if value == value] or [0.0]
    lowest, highest = min(shown), max(shown)
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    for y, name in enumerate(names):
        for x, scale in enumerate(SCALES):
            diverged = rows.get(f"{name}, at {scale:g}", {}).get("diverged")
            mark = " ×" if diverged else ""
            bright = values[y][x] > 0.3 * lowest + 0.7 * highest
            axes.text(
                x, y, f"{values[y][x]:.1f}{mark}", ha="center", va="center",
                color="black" if bright else "white",
            )  # fmt: skip
    axes.set_xticks(range(len(SCALES)), [f"{scale:g}" for scale in SCALES])
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="guidance, in and out (× a scene diverged)")
    figure.colorbar(image, label="latents, dB")


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _autoencoder(axes: Axes, rows: Rows) -> None:
    decibels = [row["vae_db"] for row in rows.values()]
    if decibels:
        axes.axhline(max(decibels), color="grey", linewidth=0.8, label="autoencoder alone")


PLOTS: Mapping[str, Callable[[Figure, Rows], None]] = {
    "ddim": ddim,
    "k-euler": k_euler,
    "finite-difference": finite_difference,
}
