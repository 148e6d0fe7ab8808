"""A seed draws one picture, its masks are exact, and held-out triples are never trained."""

import numpy as np
import pytest

from pivotal.bench.shapes.palette import COLOURS, RADII, SHAPES, held_out_triples, is_held_out
from pivotal.bench.shapes.scenes import (
    SIDE,
    Background,
    Scene,
    Thing,
    draw,
    sample_held_out,
    sample_scene,
)


def _lone(shape: str, radius: float = 14.0, x: float = 32.0, y: float = 32.0) -> Scene:
    thing = Thing(shape, "red", "medium", x, y, radius, (210, 30, 30))
    return Scene((thing,), Background("gray", "plain", (128, 128, 128)))


def test_a_seed_draws_one_picture() -> None:
    for seed in range(20):
        first = draw(sample_scene(np.random.default_rng(seed)))
        second = draw(sample_scene(np.random.default_rng(seed)))
        assert np.array_equal(first[0], second[0])
        assert np.array_equal(first[1], second[1])


def test_pictures_and_masks_have_the_promised_shapes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = sample_scene(rng)
        image, masks = draw(scene)
        assert image.shape == (SIDE, SIDE, 3)
        assert image.dtype == np.uint8
        assert masks.shape == (len(scene.objects), SIDE, SIDE)
        assert masks.dtype == np.bool_
        assert not (masks.sum(axis=0) > 1).any(), "objects never overlap"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_holds_exactly_the_pixels_nearer_to_the_ink(shape: str) -> None:
    scene = _lone(shape, radius=13.3, x=30.7, y=33.1)
    image, masks = draw(scene)
    ink, ground = np.array((210, 30, 30)), np.array((128, 128, 128))
    share = (image.astype(float) - ground) @ (ink - ground) / float(((ink - ground) ** 2).sum())
    clear = np.abs(share - 0.5) > 0.02
    assert np.array_equal(masks[0][clear], (share >= 0.5)[clear])


def test_a_circle_covers_its_area() -> None:
    _, masks = draw(_lone("circle", radius=14.0))
    assert masks.sum() == pytest.approx(np.pi * 14.0**2, rel=0.01)


def test_objects_lie_inside_the_picture() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        _, masks = draw(sample_scene(rng))
        rim = np.ones((SIDE, SIDE), dtype=bool)
        rim[1:-1, 1:-1] = False
        assert not (masks.any(axis=0) & rim).any()


def test_training_never_sees_a_held_out_triple() -> None:
    held = set(held_out_triples())
    rng = np.random.default_rng(2)
    for _ in range(2000):
        scene = sample_scene(rng)
        for thing in scene.objects:
            assert (thing.shape, thing.colour, scene.background.colour) not in held


def test_each_shape_on_each_background_misses_one_colour() -> None:
    held = held_out_triples()
    assert len({(shape, ground) for shape, _, ground in held}) == len(held) == 36
    assert {colour for _, colour, _ in held} == set(COLOURS)
    assert all(is_held_out(*triple) for triple in held)


def test_a_held_out_scene_shows_its_triple() -> None:
    rng = np.random.default_rng(3)
    for triple in held_out_triples():
        scene = sample_held_out(rng, triple)
        (thing,) = scene.objects
        assert (thing.shape, thing.colour, scene.background.colour) == triple
        assert abs(thing.radius / RADII[thing.size] - 1) <= 0.05


def test_three_quarters_hold_one_object_and_pairs_run_left_to_right() -> None:
    rng = np.random.default_rng(4)
    scenes = [sample_scene(rng) for _ in range(2000)]
    alone = np.mean([len(scene.objects) == 1 for scene in scenes])
    assert alone == pytest.approx(0.75, abs=0.04)
    for scene in scenes:
        xs = [thing.x for thing in scene.objects]
        assert xs == sorted(xs)


def test_an_unknown_shape_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="hexagon"):
        draw(_lone("hexagon"))
