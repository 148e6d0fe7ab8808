"""An edit's verdict on pictures drawn to be right, and wrong in one thing each."""

from dataclasses import replace

import numpy as np
import pytest

from pivotal.bench.shapes.palette import BACKGROUNDS
from pivotal.bench.shapes.scenes import Scene, draw
from shapes.cases import edit_cases
from shapes.judge import PLACE, judge_edit

CASES = edit_cases(4)
CONDITIONS = {"one_object", "new_attribute", "other_attribute", "background", "place", "outside"}


def failed(case, picture):
    verdict = judge_edit(case, picture)
    return verdict, {name for name in CONDITIONS if not getattr(verdict, name)}


def moved(scene, pixels):
    """The scene with its object nearer to the picture's middle."""
    thing = scene.objects[0]
    return replace(
        scene, objects=(replace(thing, x=thing.x + pixels * (1 if thing.x < 32 else -1)),)
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.target)
def test_the_wanted_scene_succeeds_and_the_source_lacks_the_new_attribute_alone(case):
    verdict, missing = failed(case, draw(case.wanted)[0])
    assert missing == set()
    assert verdict.success
    assert verdict.success_but_for_place
    verdict, missing = failed(case, draw(case.scene)[0])
    assert missing == {"new_attribute"}
    assert not verdict.success
    assert not verdict.success_but_for_place


def test_an_object_that_moved_further_than_a_latent_fails_by_its_place():
    case = CASES[1]
    assert failed(case, draw(moved(case.wanted, 0.6 * PLACE))[0])[1] == set()
    verdict, missing = failed(case, draw(moved(case.wanted, 1.6 * PLACE))[0])
    assert "place" in missing
    assert missing <= {"place", "outside"}
    assert not verdict.success
    assert verdict.success_but_for_place == ("outside" not in missing)


def test_another_background_and_a_second_object_fail():
    case = CASES[0]
    ground = case.wanted.background
    other = next(name for name in BACKGROUNDS if name != ground.colour)
    repainted = replace(
        case.wanted, background=replace(ground, colour=other, rgb=BACKGROUNDS[other])
    )
    assert {"background", "outside"} <= failed(case, draw(repainted)[0])[1]
    thing = case.wanted.objects[0]
    twin = replace(
        thing, x=14.0 if thing.x > 32 else 50.0, y=14.0 if thing.y > 32 else 50.0, radius=8.0
    )
    missing = failed(case, draw(Scene((thing, twin), ground))[0])[1]
    assert {"one_object", "outside"} <= missing


def test_noise_outside_the_object_fails_at_25_decibels():
    case = CASES[0]
    picture = draw(case.wanted)[0].astype(np.float64)
    generator = np.random.default_rng(0)
    noise = generator.standard_normal(picture.shape)
    seen = []
    for decibels in (28, 22):
        level = 255 * 10 ** (-decibels / 20)
        verdict = judge_edit(case, np.clip(picture + level * noise, 0, 255).astype(np.uint8))
        seen.append(verdict.outside)
    assert seen == [True, False]
