"""What the corrections of finite differences leave over, on the bundled model with few steps."""

import pytest

from methods import corrections
from methods.measuring import scenes_of
from pivotal.engine import Engine
from shapes.cases import EVALUATION_SEED


@pytest.fixture(scope="module")
def found():
    engine = Engine.load("shapes", device="cpu")
    scenes = scenes_of(engine, 1, EVALUATION_SEED)
    return {scale: corrections.measured(engine, scenes, scale, 8) for scale in (1.0, 3.0)}


def test_corrections_through_the_network_leave_less_and_come_back_better(found):
    for variants in found.values():
        assert variants["exact"]["residual"] < variants["none"]["residual"]
        assert variants["exact"]["round_trip_db"] > variants["none"]["round_trip_db"]
        assert variants["exact"]["fall"] < 1


def test_the_odd_timestep_has_no_part_at_guidance_1(found):
    plain, odd = found[1.0]["offset 0"], found[1.0]["offset 0.5"]
    assert odd["residual"] == pytest.approx(plain["residual"], rel=1e-3)
    assert odd["alike"] == pytest.approx(plain["alike"], abs=1e-3)
    assert found[3.0]["offset 0"]["residual"] != found[3.0]["offset 0.5"]["residual"]


def test_residuals_of_one_step_add_up_to_less_than_all(found):
    for variants in found.values():
        for figures in variants.values():
            assert -1 <= figures["alike"] <= 1
            assert 0 < figures["sum"] < 3 * figures["residual"]
