import itertools

import pytest
import torch

from pivotal.sampling.grids import karras_sigmas, level_at_sigma, levels_at, respaced
from pivotal.schedule import NoiseLevels, ScheduleConfig


@pytest.mark.parametrize("grid", ["linear", "karras"])
@pytest.mark.parametrize("steps", [1, 2, 7, 400])
def test_other_grids_have_the_same_ends_and_rise(levels, grid, steps):
    schedule = levels.schedule(50)
    found = respaced(schedule, steps, grid)
    assert found.steps == steps
    assert found.levels[0] == schedule.levels[0]
    assert found.levels[-1] == schedule.levels[-1]
    for low, high in itertools.pairwise(found.levels):
        assert low.sigma < high.sigma
        assert low.timestep < high.timestep


def test_the_schedules_own_grid_is_itself(levels):
    schedule = levels.schedule(50)
    assert respaced(schedule, 50, "schedule") is schedule
    assert respaced(schedule, 100, "schedule") == respaced(schedule, 100, "linear")


def test_a_sigmas_level_is_found_again(levels):
    for timestep in (0.0, 3.5, 500.0, 998.25, 999.0):
        (level,) = levels_at(levels, [timestep])
        found = level_at_sigma(levels, level.sigma)
        assert found.timestep == pytest.approx(timestep, abs=1e-6)
        assert found.alpha_bar == pytest.approx(level.alpha_bar, rel=1e-9)
    assert level_at_sigma(levels, 1e-5).timestep == 0
    assert level_at_sigma(levels, 1e5).timestep == 999


def test_karras_sigmas_are_evenly_spaced_in_their_seventh_root():
    roots = torch.tensor(karras_sigmas(0.03, 14.6, 9), dtype=torch.float64) ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(8))
    assert karras_sigmas(0.03, 14.6, 1) == [14.6]


def test_what_has_no_other_grid_is_refused(levels):
    with pytest.raises(ValueError, match="steps=0; 1 or more"):
        respaced(levels.schedule(5), 0, "linear")
    config = ScheduleConfig(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    schedule = NoiseLevels(config).schedule(3)
    assert respaced(schedule, 3, "schedule") is schedule
    with pytest.raises(ValueError, match="zero terminal SNR has no other spacing"):
        respaced(schedule, 4, "schedule")
