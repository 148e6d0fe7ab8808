"""A table of text and figures on a sheet."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pivotal.figures.lettering import drawable, line_height, typeface, wrap, write
from pivotal.figures.palette import GAP, HAIRLINE, INK, MARGIN, MUTED, TEXT, blank_strip


@dataclass(frozen=True)
class Table:
    """Cells of text under a header. Columns of figures are set flush right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def unwrapped_width(table: Table) -> int:
    """Pixels in which no cell needs a second line. Raises ValueError for cells beside columns."""
    natural = _natural_widths(_checked_cells(table))
    return sum(natural) + (len(natural) - 1) * GAP


def table_strip(table: Table, inside: int) -> Image.Image:
    """The table as a strip whose content is `inside` pixels wide."""
    cells = _checked_cells(table)
    count = len(table.header)
    widths = _column_widths(cells, inside)
    wrapped = [
        [wrap(cell, TEXT, width) for cell, width in zip(row, widths, strict=True)] for row in cells
    ]
    heights = [max(map(len, row)) * line_height(TEXT) + 14 for row in wrapped]
    figures = [all(_is_figure(row[column]) for row in cells[1:]) for column in range(count)]
    strip = blank_strip(inside, sum(heights))
    top = 0
    for number, (row, height) in enumerate(zip(wrapped, heights, strict=True)):
        left = MARGIN
        for column, lines in enumerate(row):
            indent = widths[column] - _length(lines) if figures[column] else 0
            write(strip, (left + indent, top), lines, TEXT, INK if number else MUTED)
            left += widths[column] + GAP
        top += height
        strip.paste(HAIRLINE, (MARGIN, top - 7, left - GAP, top - 6))
    return strip


def _checked_cells(table: Table) -> list[list[str]]:
    """The header's and all rows' cells."""
    cells = [list(table.header), *map(list, table.rows)]
    count = len(table.header)
    if count == 0 or any(len(row) != count for row in cells):
        raise ValueError(f"every row of a table needs {count} cells, as its header has, at least 1")
    return cells


def _natural_widths(cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(_length([row[column]]) for row in cells) + 2 for column in range(len(cells[0]))]


def _column_widths(cells: Sequence[Sequence[str]], inside: int) -> list[int]:
    count = len(cells[0])
    natural = _natural_widths(cells)
    room = inside - (count - 1) * GAP
    if room < count * TEXT:
        raise ValueError(f"a table of {count} columns does not fit {inside} pixels")
    excess = sum(natural) - room
    widest = max(range(count), key=lambda column: natural[column])
    if excess > 0 and natural[widest] - excess >= room // count:
        natural[widest] -= excess
    elif excess > 0:
        natural = [max(1, room // count)] * count
    return natural


def _length(lines: Sequence[str]) -> int:
    return max(int(np.ceil(typeface(TEXT).getlength(drawable(line)))) for line in lines)


def _is_figure(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in "+-−." or cell in ("inf", "∞")
