"""The oracle reads drawn scenes right, stays silent where nothing is, and survives softness."""

import numpy as np
import pytest
from scipy import ndimage

from pivotal.bench.shapes.oracle import read
from pivotal.bench.shapes.palette import BACKGROUNDS, SHAPES
from pivotal.bench.shapes.scenes import Scene, draw, sample_scene


def _is_right(image: np.ndarray, scene: Scene) -> bool:
    reading = read(image)
    if reading.background != scene.background.colour:
        return False
    if len(reading.objects) != len(scene.objects):
        return False
    return all(
        found.shape == thing.shape
        and found.colour == thing.colour
        and np.hypot(found.x - thing.x, found.y - thing.y) < 2
        for found, thing in zip(reading.objects, scene.objects, strict=True)
    )


@pytest.mark.parametrize("count", [25, pytest.param(400, marks=pytest.mark.slow)])
def test_drawn_scenes_are_read_right(count: int) -> None:
    rng = np.random.default_rng(100)
    scenes = [sample_scene(rng) for _ in range(count)]
    assert all(_is_right(draw(scene)[0], scene) for scene in scenes)


def test_slightly_soft_scenes_are_read_right() -> None:
    rng = np.random.default_rng(101)
    for _ in range(10):
        scene = sample_scene(rng)
        image = ndimage.gaussian_filter(draw(scene)[0].astype(float), (1.2, 1.2, 0))
        assert _is_right(image.astype(np.uint8), scene)


def test_masks_agree_with_the_drawn_ones() -> None:
    rng = np.random.default_rng(102)
    for _ in range(20):
        scene = sample_scene(rng)
        image, masks = draw(scene)
        for found, mask in zip(read(image).objects, masks, strict=True):
            assert (found.mask & mask).sum() / (found.mask | mask).sum() > 0.85


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_nothing_is_seen_on_a_bare_background(name: str) -> None:
    image = np.full((64, 64, 3), BACKGROUNDS[name], dtype=np.uint8)
    reading = read(image)
    assert reading.objects == ()
    assert reading.background == name


def test_a_background_outside_the_palette_has_no_name() -> None:
    assert read(np.full((64, 64, 3), (250, 60, 200), dtype=np.uint8)).background is None


def test_shapes_outside_the_vocabulary_have_no_name() -> None:
    rows, columns = np.mgrid[-32:32, -32:32]
    bar = (np.abs(columns) < 22) & (np.abs(rows) < 8)
    half = (rows**2 + columns**2 < 16**2) & (columns < 0)
    for mask in (bar, half):
        image = np.where(mask[..., None], (214, 32, 36), (126, 128, 130)).astype(np.uint8)
        (found,) = read(image).objects
        assert found.shape is None
        assert found.colour == "red"


def test_noise_is_not_taken_for_an_object() -> None:
    rng = np.random.default_rng(103)
    noise = ndimage.gaussian_filter(rng.normal(size=(64, 64, 3)), (1, 1, 0))
    image = np.clip(128 + 30 * noise / noise.std(), 0, 255).astype(np.uint8)
    assert not any(found.shape in SHAPES for found in read(image).objects)
