import pytest
import torch

from pivotal.inversion import edit_friendly
from pivotal.inversion.edit_friendly import EditFriendlyOptions
from pivotal.schedule import NoiseLevels, ScheduleConfig

STEPS = 5


def posterior(schedule, step):
    """Mean coefficients (x0, x_t) and deviation of q(x_{t-1} | x_t, x0): Ho et al. 2020, Eq. 7."""
    high, low = schedule.levels[STEPS - step], schedule.levels[STEPS - step - 1]
    beta = 1 - high.alpha_bar / low.alpha_bar
    of_x0 = low.alpha_bar**0.5 * beta / (1 - high.alpha_bar)
    of_xt = (1 - beta) ** 0.5 * (1 - low.alpha_bar) / (1 - high.alpha_bar)
    deviation = ((1 - low.alpha_bar) / (1 - high.alpha_bar) * beta) ** 0.5
    return high, low, of_x0, of_xt, deviation


@pytest.mark.parametrize("skip", [0.0, 0.4])
def test_maps_are_algorithm_1s(torch_denoiser, plain_unet, gentle, case, there, text, skip):
    one, schedule, w = case(), gentle(STEPS), 3.5
    options = EditFriendlyOptions(guidance_scale=w, skip=skip, seed=3)
    inverted = there(edit_friendly, torch_denoiser(), schedule, one, options)
    generator, unet, latents = torch.Generator().manual_seed(3), plain_unet(), [one[0]]
    for level in schedule.levels[1:]:
        fresh = torch.randn(one[0].shape[1:], generator=generator, dtype=torch.float64)
        latents.append(level.alpha_bar**0.5 * one[0] + (1 - level.alpha_bar) ** 0.5 * fresh)
    cond, null = text(unet, one[1]), text(unet, one[2])
    for step in range(STEPS):
        maps = inverted.stored["noise_maps"][:, step]
        if step < skip * STEPS:
            assert not maps.any()
            continue
        high, _, of_x0, of_xt, deviation = posterior(schedule, step)
        x = latents[STEPS - step]
        eps = null(x, high.timestep) + w * (cond(x, high.timestep) - null(x, high.timestep))
        x0 = (x - (1 - high.alpha_bar) ** 0.5 * eps) / high.alpha_bar**0.5
        mean = of_x0 * x0 + of_xt * x
        z = (latents[STEPS - step - 1] - mean) / deviation
        torch.testing.assert_close(maps, deviation * z, rtol=1e-7, atol=1e-7)
    start = latents[STEPS - round(skip * STEPS)]
    torch.testing.assert_close(inverted.stored["start"], start)


@pytest.mark.parametrize("to_one", [False, True])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("skip", [0.0, 0.4, 0.99])
def test_the_image_comes_back_exactly(calm, case, there, back, to_one, offset, skip):
    config = ScheduleConfig(steps_offset=offset, set_alpha_to_one=to_one)
    schedule, two = NoiseLevels(config).schedule(STEPS), case(2)
    options = EditFriendlyOptions(guidance_scale=2.0, skip=skip)
    inverted = there(edit_friendly, calm(), schedule, two, options)
    again = back(edit_friendly, calm(), schedule, inverted, two, 2.0, options)
    torch.testing.assert_close(again, two[0], rtol=1e-8, atol=1e-8)


def test_noise_is_independent_between_levels_and_the_same_for_every_image(
    torch_denoiser, gentle, case, there
):
    schedule, options = gentle(STEPS), EditFriendlyOptions(skip=0.0)
    two = case(2)
    inverted = there(edit_friendly, torch_denoiser(), schedule, two, options)
    top, below = schedule.levels[-1], schedule.levels[-2]
    noises = (inverted.noise - top.alpha_bar**0.5 * two[0]) / (1 - top.alpha_bar) ** 0.5
    torch.testing.assert_close(noises[0], noises[1])
    less = EditFriendlyOptions(skip=1 / STEPS)
    start = there(edit_friendly, torch_denoiser(), schedule, two, less).stored["start"]
    next_noises = (start - below.alpha_bar**0.5 * two[0]) / (1 - below.alpha_bar) ** 0.5
    joined = torch.stack([noises[0].flatten(), next_noises[0].flatten()])
    assert abs(torch.corrcoef(joined)[0, 1]) < 0.2
    other = EditFriendlyOptions(skip=0.0, seed=1)
    again = there(edit_friendly, torch_denoiser(), schedule, two, other)
    assert not torch.equal(again.noise, inverted.noise)


def test_skipped_steps_are_neither_asked_nor_sampled(torch_denoiser, gentle, case, there, back):
    denoiser, options = torch_denoiser(), EditFriendlyOptions(guidance_scale=1.0, skip=0.4)
    inverted = there(edit_friendly, denoiser, gentle(STEPS), case(), options)
    assert denoiser.rows_forward == STEPS - 2
    back(edit_friendly, denoiser, gentle(STEPS), inverted, case(), 1.0, options)
    assert denoiser.rows_forward == 2 * (STEPS - 2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"skip": 1.0}, "skip=1.0; from 0 to below 1"),
        ({"skip": -0.1}, "skip=-0.1; from 0 to below 1"),
        ({"eta": 2.0}, "eta=2.0; 0 to 1 is possible"),
    ],
)
def test_impossible_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        EditFriendlyOptions(**options)
