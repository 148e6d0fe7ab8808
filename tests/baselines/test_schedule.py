import pytest
import torch
from diffusers import DDIMScheduler

from baselines.schedule import alpha_bar_table, ddim_step, make_schedule, to_eps


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_table_is_the_schedulers_own_to_float32(config, kind):
    config = config | {"beta_schedule": kind}
    theirs = DDIMScheduler(**config).alphas_cumprod.double()
    ours = torch.tensor(alpha_bar_table(config), dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 7, 10, 50])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_steps_are_diffusers_ddim_at_eta_zero(
    config, noise, generator, steps, offset, to_one, prediction_type
):
    config = config | {
        "steps_offset": offset,
        "set_alpha_to_one": to_one,
        "prediction_type": prediction_type,
    }
    schedule = make_schedule(config, steps)
    scheduler = DDIMScheduler(**config)
    scheduler.alphas_cumprod = torch.tensor(alpha_bar_table(config), dtype=torch.float64)
    if not to_one:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(steps)
    assert schedule.timesteps == scheduler.timesteps.tolist()

    ours = theirs = noise
    for i, t in enumerate(schedule.timesteps):
        output = torch.randn(noise.shape, generator=generator, dtype=torch.float64)
        theirs = scheduler.step(output, t, theirs, eta=0.0).prev_sample
        eps = to_eps(output, ours, schedule.alpha_bar[i], prediction_type)
        ours = ddim_step(ours, eps, schedule.alpha_bar[i], schedule.alpha_bar_prev[i])
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_levels_join_up(config):
    schedule = make_schedule(config | {"steps_offset": 0}, 50)
    assert schedule.alpha_bar_prev[:-1] == schedule.alpha_bar[1:]


def test_a_step_up_undoes_a_step_down(config, noise, generator):
    eps = torch.randn(noise.shape, generator=generator, dtype=torch.float64)
    down = ddim_step(noise, eps, 0.3, 0.4)
    torch.testing.assert_close(ddim_step(down, eps, 0.4, 0.3), noise, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "field",
    [
        {"beta_schedule": "squaredcos_cap_v2"},
        {"timestep_spacing": "trailing"},
        {"clip_sample": True},
        {"rescale_betas_zero_snr": True},
    ],
)
def test_what_it_does_not_know_raises(config, field):
    with pytest.raises(ValueError, match="baseline"):
        make_schedule(config | field, 10)
