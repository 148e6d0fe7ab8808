"""Sheets that don't overflow, maps that keep their order, text that is never an empty box."""

import numpy as np
import pytest
import torch

from pivotal.errors import NonFiniteError
from pivotal.figures import (
    Panel,
    Row,
    Table,
    colour_map,
    contact_sheet,
    heat_map,
    latents_as_picture,
)
from pivotal.figures.lettering import drawable, typeface, wrap
from pivotal.figures.palette import ACCENT, GAP, HAIRLINE, MARGIN, PAPER

RED = (200, 30, 40)


def block(height=64, width=64, colour=RED):
    return np.full((height, width, 3), colour, np.uint8)


def checks(size=64):
    rows, columns = np.mgrid[:size, :size]
    return np.where((rows + columns)[..., None] % 2, 255, 0).astype(np.uint8).repeat(3, axis=2)


def ink(sheet):
    """Where a sheet is not paper, bool [H, W]."""
    return (sheet != np.array(PAPER, np.uint8)).any(axis=-1)


def extent(mask):
    rows, columns = np.nonzero(mask)
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


def painted(sheet, colour=RED):
    return extent((sheet == colour).all(axis=-1))


# Layout


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((64, 64), (256, 256)),
        ((100, 75), (200, 150)),
        ((256, 256), (256, 256)),
        ((200, 200), (200, 200)),
        ((512, 512), (256, 256)),
        ((300, 1200), (64, 256)),
        ((1, 3), (85, 255)),
        ((4000, 3), (256, 1)),
    ],
)
def test_small_panels_grow_by_a_whole_factor_and_large_ones_shrink_to_the_side(size, shown):
    top, bottom, left, right = painted(contact_sheet([Panel("", block(*size))]))
    assert (bottom - top, right - left) == shown


def test_enlarging_invents_no_colour():
    sheet = contact_sheet([Panel("", checks())])
    where = (sheet == 255).all(axis=-1)
    top, bottom, left, right = extent(where)
    shown = sheet[top:bottom, left:right]
    assert np.isin(shown, (0, 255)).all()
    assert np.array_equal(shown[::4, ::4], checks())


def test_nothing_is_drawn_in_the_margins():
    words = "a very long caption that goes on and on " * 6
    panels = [Panel(words, block(), [words, "x" * 200], accent=True)] * 3
    table = Table(["method", "note"], [[words, words], ["1", "2"]])
    sheet = contact_sheet(
        [Row(words, panels), Row("b", panels[:1])], title=words, footer=words, table=table
    )
    top, bottom, left, right = extent(ink(sheet))
    frame = 3
    assert left >= MARGIN - frame
    assert right <= sheet.shape[1] - MARGIN + frame
    assert top >= MARGIN // 2
    assert bottom <= sheet.shape[0] - MARGIN // 4


def test_a_caption_never_enters_the_gap_to_its_neighbour():
    panel = Panel("W" * 90, block(), ["W" * 90, "wide words " * 20])
    sheet = contact_sheet([panel, panel])
    gap = sheet[:, MARGIN + 256 + 1 : MARGIN + 256 + GAP - 1]
    assert not ink(gap).any()


def test_rows_hold_their_panels_in_order_and_wrap_at_the_columns():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    panels = [Panel("", block(colour=colour)) for colour in colours]
    one = [painted(contact_sheet([Row("r", panels)]), colour) for colour in colours]
    assert [left for _, _, left, _ in one] == [MARGIN + n * (256 + GAP) for n in range(3)]
    assert len({top for top, *_ in one}) == 1
    two = [painted(contact_sheet([Row("r", panels)], columns=2), colour) for colour in colours]
    assert two[2][2] == two[0][2]
    assert two[2][0] > two[0][1]


@pytest.mark.parametrize(("count", "wide"), [(5, 5), (6, 6), (7, 4), (9, 5), (12, 6), (13, 5)])
def test_no_panel_is_left_alone_on_a_line(count, wide):
    sheet = contact_sheet([Row("r", [Panel("", block())] * count)], columns=6)
    assert sheet.shape[1] == 2 * MARGIN + wide * (256 + GAP) - GAP


def test_pictures_of_a_row_stand_on_one_line_whatever_their_titles():
    panels = [Panel("long title " * 9, block()), Panel("", block(32, 64, (0, 250, 0)))]
    sheet = contact_sheet(panels)
    assert painted(sheet)[0] == painted(sheet, (0, 250, 0))[0]


def test_only_what_is_marked_is_framed_in_the_accent_colour():
    def accents(sheet):
        return int((sheet == ACCENT).all(axis=-1).sum())

    assert accents(contact_sheet([Panel("a", block())])) == 0
    assert accents(contact_sheet([Panel("a", block(), accent=True)])) == 262**2 - 256**2


def test_title_label_footer_and_table_each_add_something():
    panels = [Panel("a", block())]
    plain = contact_sheet([Row("", panels)])
    table = Table(["a", "b"], [["1", "2"]])
    for more in (
        contact_sheet([Row("", panels)], title="t"),
        contact_sheet([Row("", panels)], footer="f"),
        contact_sheet([Row("", panels)], table=table),
        contact_sheet([Row("label", panels)]),
    ):
        assert more.shape[0] > plain.shape[0]
        assert ink(more).sum() > ink(plain).sum()


def test_a_sheet_is_the_same_each_time_and_leaves_its_panels_alone():
    pixels = checks()
    pixels.flags.writeable = False
    first, second = (contact_sheet([Panel("a", pixels, ["b"])], title="t") for _ in range(2))
    assert np.array_equal(first, second)
    assert first.dtype == np.uint8
    assert np.array_equal(pixels, checks())


def test_columns_of_figures_are_flush_right_and_others_left():
    def start_of_cell(cell):
        sheet = contact_sheet([Panel("", block())], table=Table(["a wide header"], [[cell]]))
        below = sheet[painted(sheet)[1] + 2 :, MARGIN:]
        first, second = np.nonzero((below[:, 0] == HAIRLINE).all(axis=-1))[0]
        return extent(ink(below[first + 1 : second]))[2]

    assert start_of_cell("x") < 4
    assert start_of_cell("7.5") > 60
    assert start_of_cell("inf") > 60


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"content": []}, "without a panel"),
        ({"content": [Row("a", [])]}, "without a panel"),
        ({"content": [Row("a", [Panel("b", block())]), Panel("c", block())]}, "not both"),
        ({"content": [Panel("a", block())], "columns": 0}, "0 columns"),
        ({"content": [Panel("a", block())], "side": 3}, "3 pixels"),
        ({"content": [Panel("a", block() / 255)]}, "pixels are float64"),
        ({"content": [Panel("a", block()[..., 0])]}, "shape"),
        ({"content": [Panel("a", block())], "table": Table(["a"], [["1", "2"]])}, "1 cells"),
        ({"content": [Panel("a", block())], "table": Table([], [])}, "at least 1"),
        ({"content": [Panel("a", block())], "table": Table(["a"] * 40, [])}, "does not fit"),
    ],
)
def test_an_impossible_sheet_is_refused_by_name(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        contact_sheet(**arguments)


# Text


@pytest.mark.parametrize("width", [60, 256, 1000])
@pytest.mark.parametrize(
    "text", ["", "one", "several words in a row " * 8, "x" * 300, "a\nb\n\nc", "  spaces   inside "]
)
def test_wrapped_lines_fit_and_lose_no_character(text, width):
    lines = wrap(text, 20, width)
    assert all(typeface(20).getlength(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_wrapping_ends_even_where_a_single_glyph_is_too_wide():
    assert wrap("WWW", 40, 1) == ["W", "W", "W"]


def test_every_drawable_character_has_a_glyph():
    missing = bytes(typeface(20).getmask("\uffff"))
    text = "".join(map(chr, range(0x20, 0x3000)))
    drawn = set(drawable(text))
    assert all(bytes(typeface(20).getmask(character)) != missing for character in drawn)


def test_characters_without_a_glyph_are_spelt_or_marked():
    assert drawable("64 × 64 → 7.5, ∞ dB") == "64 x 64 -> 7.5, inf dB"
    assert drawable("naïve café, Ærø, Straße") == "naive cafe, ?ro, Strasse"
    assert drawable("cafe\u0301") == "cafe"
    assert drawable("日本") == "??"


# Maps


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 16])
def test_latents_of_any_channel_count_become_a_picture(channels):
    latents = torch.randn(channels, 16, 12, generator=torch.Generator().manual_seed(0))
    picture = latents_as_picture(latents)
    assert picture.shape == (16, 12, 3)
    assert picture.dtype == np.uint8
    assert picture.min() == 0
    assert picture.max() == 255


def test_latents_as_picture_ignores_scale_offset_and_a_single_outlier():
    latents = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0))
    picture = latents_as_picture(latents).astype(int)
    assert np.abs(latents_as_picture(latents * 9 - 4) - picture).max() <= 1
    latents[0, 3, 3] = 1e6
    changed = np.abs(latents_as_picture(latents) - picture)
    changed[3, 3] = 0
    assert changed.max() < 24


def test_constant_latents_are_mid_grey():
    assert (latents_as_picture(torch.full((4, 5, 5), 3.0)) == 128).all()


def test_latents_of_a_wrong_shape_or_with_nan_are_refused():
    for shape in [(1, 4, 8, 8), (8, 8), (0, 8, 8)]:
        with pytest.raises(ValueError, match="shape"):
            latents_as_picture(torch.zeros(shape))
    with pytest.raises(NonFiniteError):
        latents_as_picture(torch.full((4, 8, 8), float("nan")))


@pytest.mark.parametrize("colours", ["inferno", "viridis"])
def test_colour_maps_rise_evenly_in_lightness(colours):
    from skimage.color import rgb2lab

    lightness = rgb2lab(colour_map(np.linspace(0, 1, 256), colours)[None] / 255)[0, :, 0]
    assert (np.diff(lightness[::4]) > 0).all()
    straight = np.linspace(lightness[0], lightness[-1], 256)
    # even in CAM02-UCS: in CIELAB, inferno's own colours sag by 5.2 below a straight line
    assert np.abs(lightness - straight).max() < 6


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_a_heat_map_is_brightest_where_the_word_looks(kind):
    word_map = torch.zeros(16, 16, dtype=torch.float64)
    word_map[12, 3] = 0.02
    shown = heat_map(word_map if kind == "torch" else word_map.numpy(), block(64, 80, (90, 90, 90)))
    assert shown.shape == (64, 80, 3)
    row, column = np.unravel_index(shown.astype(int).sum(axis=-1).argmax(), (64, 80))
    assert abs(row - 50) <= 2
    assert abs(column - 17) <= 3


def test_a_heat_map_shows_the_picture_under_it():
    flat = heat_map(torch.ones(8, 8), checks(32)).astype(int)
    assert flat[checks(32)[..., 0] == 255].mean() > flat[checks(32)[..., 0] == 0].mean() + 60


def test_a_heat_map_depends_on_the_order_of_places_not_on_the_scale():
    word_map = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(heat_map(word_map, block()), heat_map(word_map * 64, block()))


def test_a_heat_map_leaves_its_inputs_alone_and_refuses_what_is_no_map():
    word_map, pixels = torch.rand(8, 8), block()
    kept = word_map.clone()
    heat_map(word_map, pixels)
    assert torch.equal(word_map, kept)
    assert (pixels == RED).all()
    for shape in [(8,), (1, 8, 8), (0, 8)]:
        with pytest.raises(ValueError, match="word map has shape"):
            heat_map(torch.zeros(shape), pixels)
    with pytest.raises(NonFiniteError):
        heat_map(torch.full((8, 8), float("inf")), pixels)
    with pytest.raises(ValueError, match="'jet' is unknown"):
        heat_map(word_map, pixels, "jet")
    with pytest.raises(ValueError, match="pixels are"):
        heat_map(word_map, pixels / 255)


def test_a_sheet_of_few_panels_is_wide_enough_for_its_table():
    header = ["method", "s", "rows", "back", "lat", "mean", "std", "KS", "corr", "kept"]
    rows = [["null-text-line-search", *["100.00"] * 9]] * 3
    few = contact_sheet([Row("", [Panel("", block())])], table=Table(header, rows))
    many = contact_sheet([Row("", [Panel("", block())] * 8)], table=Table(header, rows))
    alone = [contact_sheet([Row("", [Panel("", block())] * count)]) for count in (1, 8)]
    assert few.shape[0] - alone[0].shape[0] == many.shape[0] - alone[1].shape[0]  # no cell wraps
    long = Table(["a"], [["a word " * 500]])
    assert contact_sheet([Row("", [Panel("", block())])], table=long).shape[1] < 1400
