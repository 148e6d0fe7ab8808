"""Any height and width: which size a picture gets inside a model, and how it comes back."""

import logging
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pivotal.images import fit, model_size, psnr, read_image, warn_if_far

SIZES = [(512, 768), (880, 1184), (1024, 576), (333, 517)]


def smooth(height, width):
    rows, columns = np.mgrid[:height, :width]
    levels = [255 * columns / width, 255 * rows / height, 128 + 100 * np.sin(rows / 40)]
    return np.stack(levels, axis=-1).round().astype(np.uint8)


sides = st.integers(1, 3000)


@given(source=st.tuples(sides, sides), multiple=st.sampled_from([1, 4, 8, 64]))
def test_fit_takes_the_budgets_pixels_in_the_pictures_aspect(source, multiple):
    height, width = model_size(source, (512, 512), "fit", multiple)
    assert height % multiple == width % multiple == 0
    scale = 512 / math.sqrt(math.prod(source))
    for found, side in ((height, source[0]), (width, source[1])):
        assert abs(found - side * scale) <= multiple / 2 or found == multiple


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("fit", (336, 520)), ("stretch", (336, 520)), ("crop", (328, 512)), ("pad", (336, 520))],
)
def test_a_pictures_own_size_is_rounded_to_multiples(policy, expected):
    assert model_size((333, 517), "source", policy, 8) == expected
    assert model_size((512, 768), "source", policy, 8) == (512, 768)


@pytest.mark.parametrize("policy", ["fit", "pad", "stretch"])
@pytest.mark.parametrize("wanted", [(64, 64), "source"])
@pytest.mark.parametrize("size", SIZES)
def test_what_comes_back_has_the_pictures_size(policy, wanted, size):
    picture = read_image(smooth(*size))
    fitted = fit(picture, wanted, policy, multiple=8)
    assert all(side % 8 == 0 for side in fitted.size)
    back = fitted.unfit(fitted.pixels)
    assert back.shape == picture.pixels.shape
    assert psnr(back, picture.pixels) > 30


def test_if_nothing_is_said_all_of_a_photograph_comes_back():
    fitted = fit(read_image(smooth(683, 1024)), (512, 512), multiple=8)
    assert (fitted.policy, fitted.size) == ("fit", (416, 624))
    assert fitted.unfit(fitted.pixels).shape == (683, 1024, 3)


@pytest.mark.parametrize(
    ("policy", "ids"),
    [
        ("crop", (512, 768, 0, 128, 512, 512)),
        ("pad", (512, 512, 0, 0, 512, 512)),
        ("stretch", (512, 512, 0, 0, 512, 512)),
        ("fit", (416, 624, 0, 0, 416, 624)),
    ],
)
def test_sdxl_is_told_of_which_picture_a_crop_is_a_part(policy, ids):
    assert fit(read_image(smooth(300, 450)), (512, 512), policy, multiple=8).time_ids == ids


@pytest.mark.parametrize("size", SIZES)
def test_padding_to_multiples_changes_no_pixel(size):
    picture = read_image(smooth(*size))
    fitted = fit(picture, "source", "pad", multiple=64)
    assert np.array_equal(fitted.unfit(fitted.pixels), picture.pixels)


def test_cropping_to_multiples_resamples_nothing():
    picture = read_image(smooth(333, 517))
    fitted = fit(picture, "source", "crop", multiple=8)
    left, top, right, bottom = fitted.box
    assert np.array_equal(fitted.pixels, picture.pixels[top:bottom, left:right])


@pytest.mark.parametrize("policy", ["fit", "crop", "pad", "stretch"])
def test_another_picture_follows_the_first(policy):
    """A bright square stays where it is in the picture."""
    pixels = smooth(333, 517)
    square = np.zeros_like(pixels)
    square[150:200, 240:300] = 255
    fitted = fit(read_image(pixels), (64, 64), policy, multiple=8)
    alone = fit(read_image(square), (64, 64), policy, multiple=8)
    assert np.array_equal(fitted.follow(square), alone.pixels)
    with pytest.raises(ValueError, match=r"10 x 10 can't follow.*333 x 517"):
        fitted.follow(square[:10, :10])


def test_sizes_that_no_model_takes_are_refused():
    with pytest.raises(ValueError, match="8000 x 8000: a model takes at most 16 million"):
        model_size((8000, 8000), "source")
    with pytest.raises(ValueError, match=r"size='own'.*'source'"):
        model_size((8, 8), "own")


def test_a_size_far_from_the_trained_one_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        warn_if_far((1024, 1024), (512, 512))
        assert not caplog.records
        warn_if_far((1024, 1032), (512, 512))
    assert "1024 x 1032 has 4 times the pixels" in caplog.text
