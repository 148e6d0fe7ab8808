"""What the corrections of finite differences leave over, on the bundled model with few steps."""

import pytest

from methods import corrections
from methods.measuring import scenes_of
from pivotal.engine import Engine
from shapes.cases import EVALUATION_SEED

STEPS = 7  # two of them late ones


@pytest.fixture(scope="module")
def found():
    engine = Engine.load("shapes", device="cpu")
    scenes = scenes_of(engine, 1, EVALUATION_SEED)
    odd = {name: corrections.VARIANTS[name] for name in ("offset 0", "offset 0.5")}
    most = {name: corrections.VARIANTS[name] for name in corrections.VARIANTS if "25" not in name}
    return {
        1.0: corrections.measured(engine, scenes, 1.0, STEPS, odd),
        3.0: corrections.measured(engine, scenes, 3.0, STEPS, most),
    }


@pytest.mark.parametrize("name", ["frozen", "exact"])
def test_corrections_asked_where_the_sampler_asks_leave_less_and_come_back_better(found, name):
    asked, none = found[3.0][name], found[3.0]["none"]
    assert asked["residual"] < none["residual"]
    assert asked["round_trip_db"] > none["round_trip_db"]
    assert asked["fall"] < 1


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
