"""Contact sheets: rows of captioned panels, with a title, tables and a footer.

A sheet is a stack of strips, each as wide as the sheet; what is in a strip knows nothing of the
others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from pivotal.figures.lettering import Colour, line_height, wrap, write
from pivotal.figures.palette import (
    ACCENT,
    GAP,
    HAIRLINE,
    INK,
    LABEL,
    MARGIN,
    MUTED,
    SMALL,
    TEXT,
    TITLE,
    blank_strip,
)  # fmt: skip
from pivotal.figures.table import Table, table_strip, unwrapped_width
from pivotal.images import Pixels, check_pixels

_MIN_CONTENT = 480
_WIDEST_FOR_TABLE = 1200  # beyond it a table's cells wrap


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet: `pixels` uint8 `[H, W, 3]`, a title above, caption lines below.

    `accent` frames it in the accent colour: the results that a reader came for.
    """

    title: str
    pixels: Pixels = field(compare=False, repr=False)
    caption: Sequence[str] = ()
    accent: bool = False


@dataclass(frozen=True)
class Row:
    """Panels that belong together, under one label."""

    label: str
    panels: Sequence[Panel]


def contact_sheet(
    content: Sequence[Row] | Sequence[Panel],
    *,
    title: str = "",
    footer: str = "",
    columns: int | None = None,
    table: Table | None = None,
    side: int = 256,
) -> Pixels:
    """Lay rows (or loose panels) out on one sheet, uint8 `[H, W, 3]`.

    Each picture fits a square of `side` pixels: small ones grow by a whole factor without
    smoothing, large ones shrink (Lanczos). A row of more panels than `columns` (None: the longest
    row, loose panels at most 6) goes on in further lines, evenly filled. Text wraps and never
    leaves its column; so that a table's need not wrap, the sheet widens to 1200 pixels. Raises
    ValueError for an empty sheet and for unusable numbers or pixels.
    """
    rows = _as_rows(content)
    if side < 16:
        raise ValueError(f"panels of {side} pixels are too small: give a side of at least 16")
    if columns is None:
        longest = max(len(row.panels) for row in rows)
        columns = longest if isinstance(content[0], Row) else min(longest, 6)
    if columns < 1:
        raise ValueError(f"{columns} columns can't hold a panel: give at least 1")
    columns = max(_balanced(len(row.panels), columns) for row in rows)
    inside = max(columns * (side + GAP) - GAP, _MIN_CONTENT)
    if table is not None:
        inside = max(inside, min(unwrapped_width(table), _WIDEST_FOR_TABLE))
    strips = [blank_strip(inside, MARGIN)]
    if title:
        strips += [_text(title, TITLE, INK, inside), blank_strip(inside, GAP)]
    for number, row in enumerate(rows):
        if number:
            strips += [blank_strip(inside, GAP // 2), _hairline(inside), blank_strip(inside, GAP)]
        if row.label:
            strips += [_label(row.label, inside), blank_strip(inside, GAP // 2)]
        for start in range(0, len(row.panels), columns):
            strips += [_line_of_panels(row.panels[start : start + columns], side, inside)]
            strips += [blank_strip(inside, GAP // 2)]
    if table is not None:
        strips += [blank_strip(inside, GAP), table_strip(table, inside)]
    if footer:
        strips += [blank_strip(inside, GAP), _hairline(inside), blank_strip(inside, GAP // 2)]
        strips += [_text(footer, SMALL, MUTED, inside)]
    strips += [blank_strip(inside, MARGIN - GAP // 2)]
    return np.concatenate([np.asarray(strip) for strip in strips])


def _balanced(panels: int, columns: int) -> int:
    """Panels a line: as few lines as `columns` allows, and no single panel left over for one."""
    lines = -(-panels // columns)
    return -(-panels // lines)


def _as_rows(content: Sequence[Row] | Sequence[Panel]) -> list[Row]:
    rows = [item for item in content if isinstance(item, Row)]
    panels = [item for item in content if isinstance(item, Panel)]
    if rows and panels:
        raise ValueError("a sheet holds rows or loose panels, not both: put the panels in a Row")
    if panels:
        rows = [Row("", panels)]
    if not rows or not all(row.panels for row in rows):
        raise ValueError("a sheet without a panel, or a row without one, can't be shown")
    for row in rows:
        for panel in row.panels:
            check_pixels(panel.pixels)
    return rows


def _hairline(inside: int) -> Image.Image:
    strip = blank_strip(inside, 1)
    strip.paste(HAIRLINE, (MARGIN, 0, MARGIN + inside, 1))
    return strip


def _text(text: str, size: int, colour: Colour, inside: int) -> Image.Image:
    lines = wrap(text, size, inside)
    strip = blank_strip(inside, len(lines) * line_height(size))
    write(strip, (MARGIN, 0), lines, size, colour)
    return strip


def _label(text: str, inside: int) -> Image.Image:
    indent = 16
    lines = wrap(text, LABEL, inside - indent)
    strip = blank_strip(inside, len(lines) * line_height(LABEL))
    strip.paste(ACCENT, (MARGIN, 3, MARGIN + 5, strip.height - 7))
    write(strip, (MARGIN + indent, 0), lines, LABEL, INK)
    return strip


def _line_of_panels(panels: Sequence[Panel], side: int, inside: int) -> Image.Image:
    pictures = [_scaled(panel.pixels, side) for panel in panels]
    titles = [wrap(panel.title, TEXT, side) if panel.title else [] for panel in panels]
    captions = [
        [line for text in panel.caption for line in wrap(text, SMALL, side)] for panel in panels
    ]
    head = max(map(len, titles)) * line_height(TEXT) + 6
    body = max(picture.height for picture in pictures)
    foot = max(map(len, captions)) * line_height(SMALL) + 14
    strip = blank_strip(inside, head + body + foot)
    for number, panel in enumerate(panels):
        left = MARGIN + number * (side + GAP)
        top = head - 6 - len(titles[number]) * line_height(TEXT)
        write(strip, (left, top), titles[number], TEXT, INK)
        _frame(strip, pictures[number], (left, head), panel.accent)
        colour = INK if panel.accent else MUTED
        write(strip, (left, head + body + 10), captions[number], SMALL, colour)
    return strip


def _frame(strip: Image.Image, picture: Image.Image, at: tuple[int, int], accent: bool) -> None:
    thickness = 3 if accent else 1
    left, top = at
    right, bottom = left + picture.width, top + picture.height
    around = (left - thickness, top - thickness, right + thickness - 1, bottom + thickness - 1)
    ImageDraw.Draw(strip).rectangle(around, fill=ACCENT if accent else HAIRLINE)
    strip.paste(picture, at)


def _scaled(pixels: Pixels, side: int) -> Image.Image:
    picture = Image.fromarray(pixels)
    longest = max(picture.size)
    if longest <= side:
        factor = side // longest
        size = (picture.width * factor, picture.height * factor)
        return picture.resize(size, Image.Resampling.NEAREST)
    width, height = (max(1, round(extent * side / longest)) for extent in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)
