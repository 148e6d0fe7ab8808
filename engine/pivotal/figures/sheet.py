"""Contact sheets: rows of captioned panels, with a title, tables and a footer.

A sheet is a stack of strips, each as wide as the sheet; what is in a strip knows nothing of the
others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from pivotal.figures.lettering import Colour, drawable, line_height, typeface, wrap, write
from pivotal.images import Pixels, check_pixels

_PAPER: Colour = (251, 251, 249)
_INK: Colour = (28, 29, 33)
_MUTED: Colour = (112, 115, 124)
_HAIRLINE: Colour = (222, 223, 226)
_ACCENT: Colour = (221, 84, 39)

_MARGIN = 56  # pixels, as all below
_GAP = 28
_TITLE, _LABEL, _TEXT, _SMALL = 40, 26, 22, 19
_MIN_CONTENT = 480


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


@dataclass(frozen=True)
class Table:
    """Cells of text under a header. Columns of figures are set flush right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


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
    row, loose panels at most 6) goes on in a further line. Text wraps and never leaves its
    column. Raises ValueError for an empty sheet and for unusable numbers or pixels.
    """
    rows = _as_rows(content)
    if side < 16:
        raise ValueError(f"panels of {side} pixels are too small: give a side of at least 16")
    if columns is None:
        longest = max(len(row.panels) for row in rows)
        columns = longest if isinstance(content[0], Row) else min(longest, 6)
    if columns < 1:
        raise ValueError(f"{columns} columns can't hold a panel: give at least 1")
    inside = max(columns * (side + _GAP) - _GAP, _MIN_CONTENT)
    strips = [_space(inside, _MARGIN)]
    if title:
        strips += [_text(title, _TITLE, _INK, inside), _space(inside, _GAP)]
    for number, row in enumerate(rows):
        if number:
            strips += [_space(inside, _GAP // 2), _hairline(inside), _space(inside, _GAP)]
        if row.label:
            strips += [_label(row.label, inside), _space(inside, _GAP // 2)]
        for start in range(0, len(row.panels), columns):
            strips += [_line_of_panels(row.panels[start : start + columns], side, inside)]
            strips += [_space(inside, _GAP // 2)]
    if table is not None:
        strips += [_space(inside, _GAP), _table(table, inside)]
    if footer:
        strips += [_space(inside, _GAP), _hairline(inside), _space(inside, _GAP // 2)]
        strips += [_text(footer, _SMALL, _MUTED, inside)]
    strips += [_space(inside, _MARGIN - _GAP // 2)]
    return np.concatenate([np.asarray(strip) for strip in strips])


def before_after(
    before: Panel, after: Panel, *, title: str = "", footer: str = "", side: int = 512
) -> Pixels:
    """Two large panels beside each other, uint8 `[H, W, 3]`."""
    return contact_sheet([before, after], title=title, footer=footer, columns=2, side=side)


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


def _strip(inside: int, height: int) -> Image.Image:
    return Image.new("RGB", (inside + 2 * _MARGIN, height), _PAPER)


_space = _strip


def _hairline(inside: int) -> Image.Image:
    strip = _strip(inside, 1)
    strip.paste(_HAIRLINE, (_MARGIN, 0, _MARGIN + inside, 1))
    return strip


def _text(text: str, size: int, colour: Colour, inside: int) -> Image.Image:
    lines = wrap(text, size, inside)
    strip = _strip(inside, len(lines) * line_height(size))
    write(strip, (_MARGIN, 0), lines, size, colour)
    return strip


def _label(text: str, inside: int) -> Image.Image:
    indent = 16
    lines = wrap(text, _LABEL, inside - indent)
    strip = _strip(inside, len(lines) * line_height(_LABEL))
    strip.paste(_ACCENT, (_MARGIN, 3, _MARGIN + 5, strip.height - 7))
    write(strip, (_MARGIN + indent, 0), lines, _LABEL, _INK)
    return strip


def _line_of_panels(panels: Sequence[Panel], side: int, inside: int) -> Image.Image:
    pictures = [_scaled(panel.pixels, side) for panel in panels]
    titles = [wrap(panel.title, _TEXT, side) if panel.title else [] for panel in panels]
    captions = [
        [line for text in panel.caption for line in wrap(text, _SMALL, side)] for panel in panels
    ]
    head = max(map(len, titles)) * line_height(_TEXT) + 6
    body = max(picture.height for picture in pictures)
    foot = max(map(len, captions)) * line_height(_SMALL) + 14
    strip = _strip(inside, head + body + foot)
    for number, panel in enumerate(panels):
        left = _MARGIN + number * (side + _GAP)
        top = head - 6 - len(titles[number]) * line_height(_TEXT)
        write(strip, (left, top), titles[number], _TEXT, _INK)
        _frame(strip, pictures[number], (left, head), panel.accent)
        colour = _INK if panel.accent else _MUTED
        write(strip, (left, head + body + 10), captions[number], _SMALL, colour)
    return strip


def _frame(strip: Image.Image, picture: Image.Image, at: tuple[int, int], accent: bool) -> None:
    thickness = 3 if accent else 1
    left, top = at
    right, bottom = left + picture.width, top + picture.height
    around = (left - thickness, top - thickness, right + thickness - 1, bottom + thickness - 1)
    ImageDraw.Draw(strip).rectangle(around, fill=_ACCENT if accent else _HAIRLINE)
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


def _table(table: Table, inside: int) -> Image.Image:
    cells = [list(table.header), *map(list, table.rows)]
    count = len(table.header)
    if count == 0 or any(len(row) != count for row in cells):
        raise ValueError(f"every row of a table needs {count} cells, as its header has, at least 1")
    widths = _column_widths(cells, inside)
    wrapped = [
        [wrap(cell, _TEXT, width) for cell, width in zip(row, widths, strict=True)] for row in cells
    ]
    heights = [max(map(len, row)) * line_height(_TEXT) + 14 for row in wrapped]
    figures = [all(_is_figure(row[column]) for row in cells[1:]) for column in range(count)]
    strip = _strip(inside, sum(heights))
    top = 0
    for number, (row, height) in enumerate(zip(wrapped, heights, strict=True)):
        left = _MARGIN
        for column, lines in enumerate(row):
            indent = widths[column] - _length(lines) if figures[column] else 0
            write(strip, (left + indent, top), lines, _TEXT, _INK if number else _MUTED)
            left += widths[column] + _GAP
        top += height
        strip.paste(_HAIRLINE, (_MARGIN, top - 7, left - _GAP, top - 6))
    return strip


def _column_widths(cells: Sequence[Sequence[str]], inside: int) -> list[int]:
    count = len(cells[0])
    natural = [max(_length([row[column]]) for row in cells) + 2 for column in range(count)]
    room = inside - (count - 1) * _GAP
    if room < count * _TEXT:
        raise ValueError(f"a table of {count} columns does not fit {inside} pixels")
    excess = sum(natural) - room
    widest = max(range(count), key=lambda column: natural[column])
    if excess > 0 and natural[widest] - excess >= room // count:
        natural[widest] -= excess
    elif excess > 0:
        natural = [max(1, room // count)] * count
    return natural


def _length(lines: Sequence[str]) -> int:
    return max(int(np.ceil(typeface(_TEXT).getlength(drawable(line)))) for line in lines)


def _is_figure(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in "+-−." or cell in ("inf", "∞")
