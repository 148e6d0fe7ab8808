import itertools

import pytest
import torch

from pivotal.inversion import ddim, k_euler
from pivotal.inversion.k_euler import KEulerOptions
from pivotal.schedule import NoiseLevels, ScheduleConfig

STEPS = 4


def transcription(schedule, z, eps, where, heun):
    """k-diffusion's Euler (or Heun) on the ascending sigmas of a schedule: latents at the top."""
    levels = NoiseLevels(schedule.config)
    table = levels.alpha_bars
    log_sigmas = 0.5 * ((1 - table) / table).log()

    def timestep(sigma):
        wanted = torch.tensor(sigma, dtype=torch.float64).log()
        above = int((log_sigmas < wanted).sum().clamp(1, 999))
        part = (wanted - log_sigmas[above - 1]) / (log_sigmas[above] - log_sigmas[above - 1])
        return above - 1 + float(part.clamp(0, 1))

    def derivative(x, sigma):
        scaled = x / (1 + sigma**2) ** 0.5
        denoised = x - sigma * eps(scaled, timestep(sigma))
        return (x - denoised) / sigma

    smallest = float(log_sigmas[0].exp())
    sigmas = [level.sigma for level in schedule.levels]
    x = z * (1 + sigmas[0] ** 2) ** 0.5
    for low, high in itertools.pairwise(sigmas):
        at = {"source": low, "destination": high, "mean": (low + high) / 2}[where]
        d = derivative(x, max(at, smallest))
        if heun:
            d = (d + derivative(x + d * (high - low), high)) / 2
        x = x + d * (high - low)
    return x / (1 + sigmas[-1] ** 2) ** 0.5


@pytest.mark.parametrize("where", ["source", "destination", "mean"])
@pytest.mark.parametrize("heun", [False, True])
@pytest.mark.parametrize("to_one", [False, True])
def test_steps_are_k_diffusions_backwards(
    calm, calm_unet, gentle, case, there, text, where, heun, to_one
):
    one, schedule = case(), gentle(STEPS, set_alpha_to_one=to_one)
    options = KEulerOptions(derivative_at=where, heun=heun, grid="schedule")
    ours = there(k_euler, calm(), schedule, one, options).noise
    theirs = transcription(schedule, one[0], text(calm_unet(), one[1]), where, heun)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)


def test_at_guidance_0_the_empty_prompt_alone_is_asked(calm, calm_unet, gentle, case, there, text):
    one, schedule = case(), gentle(STEPS)
    options = KEulerOptions("destination", False, "schedule", guidance_scale=0.0)
    ours = there(k_euler, calm(), schedule, one, options).noise
    theirs = transcription(schedule, one[0], text(calm_unet(), one[2]), "destination", False)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)


def test_going_down_is_ddim_by_another_name(calm, gentle, case, there, back):
    one, schedule, options = case(), gentle(STEPS), KEulerOptions(grid="schedule")
    inverted = there(k_euler, calm(), schedule, one, options)
    ours = back(k_euler, calm(), schedule, inverted, one, 2.0, options)
    theirs = back(ddim, calm(), schedule, inverted, one, 2.0, ddim.DDIMOptions())
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("grid", ["schedule", "linear", "karras"])
@pytest.mark.parametrize(("given", "least"), [({}, 1.7), ({"heun": True}, 3.4)])
def test_the_noise_converges_to_the_flows_and_heuns_faster(
    gaussian, data, fine_levels, there, rms, grid, given, least
):
    levels, counts, errors = fine_levels(), (200, 400), []
    denoiser, case = gaussian(levels), (data[0], data[1], data[1])
    for steps in counts:
        schedule = levels.schedule(steps)
        where = "source" if given else "destination"
        options = KEulerOptions(**{"grid": grid, "derivative_at": where, "heun": False} | given)
        noise = there(k_euler, denoiser, schedule, case, options).noise
        exact = denoiser.flow(data[0], schedule.levels[0], schedule.levels[-1])
        errors.append(rms(noise - exact))
    assert errors[-2] / errors[-1] > least  # by halving the steps


def test_more_steps_up_than_down_bring_the_noise_to_sigma_max(gaussian, data, there):
    levels = NoiseLevels(ScheduleConfig())
    denoiser, case, schedule = gaussian(levels), (data[0], data[1], data[1]), levels.schedule(50)
    ratios = []
    for count in (50, 200, 800):
        options = KEulerOptions(invert_steps=count, heun=False)
        inverted = there(k_euler, denoiser, schedule, case, options)
        ratios.append(inverted.diagnostics["noise_std_ratio"].item())
    exact = denoiser.flow(data[0], schedule.levels[0], schedule.levels[-1])
    top = schedule.levels[-1]
    wanted = exact.std().item() / (1 - top.alpha_bar) ** 0.5
    apart = [abs(ratio - wanted) for ratio in ratios]
    assert apart[0] > 2 * apart[1] > 4 * apart[2]


def test_heun_costs_twice_as_much(calm, gentle, case, there):
    for heun, rows in ((False, STEPS), (True, 2 * STEPS)):
        denoiser = calm()
        there(k_euler, denoiser, gentle(STEPS), case(), KEulerOptions(heun=heun))
        assert denoiser.rows_forward == rows


def test_ddim_too_may_go_up_in_more_steps_than_down(gaussian, data, there, back, rms):
    levels = NoiseLevels(ScheduleConfig())
    denoiser, case, schedule = gaussian(levels), (data[0], data[1], data[1]), levels.schedule(50)
    exact = denoiser.flow(data[0], schedule.levels[0], schedule.levels[-1])
    errors = [
        rms(
            there(ddim, denoiser, schedule, case, ddim.DDIMOptions(invert_steps=count)).noise
            - exact
        )
        for count in (None, 200, 800)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_zero_terminal_snr_is_refused(torch_denoiser, case, there):
    config = ScheduleConfig(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    with pytest.raises(ValueError, match="k-Euler inversion needs a finite sigma_max"):
        there(
            k_euler, torch_denoiser("v_prediction"), NoiseLevels(config).schedule(3), case(),
            KEulerOptions(),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"derivative_at": "end"}, "'end' is unknown; accepted are source, destination, mean"),
        ({"grid": "cosine"}, "grid='cosine' is unknown; accepted are schedule, linear, karras"),
        ({"invert_steps": 0}, "invert_steps=0; 1 or more"),
    ],
)
def test_impossible_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        KEulerOptions(**options)
