import itertools
from dataclasses import asdict, replace

import pytest
import torch

from baselines.null_text import ddim_inversion, guided
from baselines.schedule import ddim_step, make_schedule, predict_eps
from pivotal.control import NoEdit
from pivotal.driver import drive
from pivotal.inversion import ddim
from pivotal.query import Conditioning
from pivotal.schedule import NoiseLevels, ScheduleConfig

STEPS = 5
COUNTS = (25, 50, 100, 200, 400, 800)


def pivots_of(denoiser, schedule, latents, cond, null, **options):
    return drive(
        ddim.trajectory(schedule, latents, cond, null, ddim.DDIMOptions(**options)), denoiser
    )


def there_and_back(denoiser, schedule, latents, cond, **options):
    options = ddim.DDIMOptions(**options)
    inverted = drive(ddim.invert(schedule, latents, cond, cond, options), denoiser)
    back = drive(ddim.replay(schedule, inverted, cond, cond, 1.0, NoEdit()), denoiser)
    return inverted.noise, back


def rms(difference):
    return difference.square().mean().sqrt().item()


@pytest.fixture
def data():
    """Samples of the Gaussian that the exact denoiser knows, and a conditioning it ignores."""
    generator = torch.Generator().manual_seed(0)
    latents = 0.7 + 0.4 * torch.randn(1, 1, 8, 8, generator=generator, dtype=torch.float64)
    return latents, Conditioning(torch.zeros(1, 1, 1, dtype=torch.float64))


def fine_levels(kind="epsilon", count=12800):
    """A table so fine that 800 steps divide it: integer timesteps are no limit to convergence."""
    return NoiseLevels(
        ScheduleConfig(
            num_train_timesteps=count,
            beta_schedule="linear",
            beta_start=0.1 / count,
            beta_end=20 / count,
            timestep_spacing="trailing",
            prediction_type=kind,
        )
    )


def errors(gaussian, levels, data, counts=COUNTS, **options):
    """Round-trip error, and that of the noise against the exact flow, for each number of steps."""
    latents, nothing = data
    denoiser = gaussian(levels)
    round_trip, flow = [], []
    for steps in counts:
        schedule = levels.schedule(steps)
        noise, back = there_and_back(denoiser, schedule, latents, nothing, **options)
        exact = denoiser.flow(latents, schedule.levels[0], schedule.levels[-1])
        round_trip.append(rms(back - latents))
        flow.append(rms(noise - exact))
    return round_trip, flow


def order(values, counts=COUNTS):
    """The slope of log error over log steps, least squares."""
    x = torch.tensor(counts, dtype=torch.float64).log()
    y = torch.tensor(values, dtype=torch.float64).log()
    return -((x - x.mean()) * (y - y.mean())).sum().item() / (x - x.mean()).square().sum().item()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_round_trip_converges_at_first_order_on_a_gaussian(gaussian, data, kind):
    for values in errors(gaussian, fine_levels(kind), data):
        assert order(values) == pytest.approx(1.0, abs=0.06)
        ratios = [coarse / fine for coarse, fine in itertools.pairwise(values)]
        assert ratios[-1] == pytest.approx(2.0, abs=0.03)
        assert all(1.8 < ratio < 2.1 for ratio in ratios)


def test_the_round_trip_converges_on_sds_own_table(gaussian, data):
    counts = (25, 50, 100, 200)
    for spacing in ("leading", "trailing"):
        levels = NoiseLevels(ScheduleConfig(timestep_spacing=spacing))
        for values in errors(gaussian, levels, data, counts):
            assert order(values, counts) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize(
    "kind",
    [
        "epsilon",
        "v_prediction",
        "sample",
    ],
)
def test_the_destinations_timestep_beats_the_sources_at_fifty_steps(gaussian, data, kind):
    levels = NoiseLevels(ScheduleConfig(prediction_type=kind))
    (destination,), _ = errors(gaussian, levels, data, (50,), asked_at="destination")
    (source,), _ = errors(gaussian, levels, data, (50,), asked_at="source")
    assert destination < 0.8 * source


def test_asked_at_the_source_all_kinds_of_prediction_are_one(gaussian, data):
    latents, nothing = data
    noises = []
    for kind in ("epsilon", "v_prediction", "sample"):
        levels = NoiseLevels(ScheduleConfig(prediction_type=kind))
        schedule = levels.schedule(20)
        noises.append(
            there_and_back(gaussian(levels), schedule, latents, nothing, asked_at="source")[0]
        )
    torch.testing.assert_close(noises[1], noises[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(noises[2], noises[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("zero", [False, True])
def test_v_prediction_inverts_up_to_zero_terminal_snr(gaussian, data, zero):
    config = ScheduleConfig(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=zero
    )
    values, flow = errors(gaussian, NoiseLevels(config), data, (25, 50, 100))
    assert values == sorted(values, reverse=True)
    assert flow == sorted(flow, reverse=True)
    assert values[-1] < 0.03


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_round_trip_of_a_network_falls_with_every_doubling(
    torch_denoiser, latents, prompts, kind
):
    levels = NoiseLevels(  # ends at sigma 2.6, where a random network is still smooth enough
        ScheduleConfig(
            beta_schedule="linear",
            beta_start=1e-4,
            beta_end=4e-3,
            timestep_spacing="trailing",
            prediction_type=kind,
        )
    )
    denoiser, z = torch_denoiser(kind), latents()
    found = []
    for steps in (5, 10, 20):
        _, back = there_and_back(denoiser, levels.schedule(steps), z, prompts())
        found.append(rms(back - z))
    assert found == sorted(found, reverse=True)
    assert found[-1] < (0.95 if kind == "sample" else 0.6) * found[0]


def test_pivots_are_the_baselines(torch_denoiser, plain_unet, levels, latents, prompts):
    z, cond = latents(), prompts()
    ours = pivots_of(torch_denoiser(), levels.schedule(STEPS), z, cond, cond)
    theirs = ddim_inversion(
        plain_unet(), make_schedule(asdict(levels.config), STEPS), z, cond.hidden_states
    )
    assert len(ours) == STEPS + 1
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_pivots_in_float32_are_close_and_stay_float32(
    torch_denoiser, plain_unet, levels, latents, prompts
):
    z, cond = latents(dtype=torch.float32), prompts(dtype=torch.float32)
    ours = pivots_of(torch_denoiser(dtype=torch.float32), levels.schedule(STEPS), z, cond, cond)
    theirs = ddim_inversion(
        plain_unet(),
        make_schedule(asdict(levels.config), STEPS),
        z.double(),
        cond.hidden_states.double(),
    )
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), reference, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("asked_at", ["destination", "source"])
def test_inversion_may_be_guided_and_asked_at_either_end(
    torch_denoiser, plain_unet, levels, latents, prompts, asked_at
):
    z, cond, null = latents(), prompts(seed=1), prompts(seed=2)
    ours = pivots_of(
        torch_denoiser(),
        levels.schedule(STEPS),
        z,
        cond,
        null,
        guidance_scale=2.5,
        asked_at=asked_at,
    )
    schedule, unet = make_schedule(asdict(levels.config), STEPS), plain_unet()
    for i in reversed(range(STEPS)):
        asked = schedule
        if asked_at == "source":  # the clean level's timestep is 0
            asked = replace(schedule, timesteps=[*schedule.timesteps[1:], 0])
        with torch.no_grad():
            eps = guided(
                predict_eps(unet, asked, i, z, null.hidden_states),
                predict_eps(unet, asked, i, z, cond.hidden_states),
                2.5,
            )
        z = ddim_step(z, eps, schedule.alpha_bar_prev[i], schedule.alpha_bar[i])
    torch.testing.assert_close(ours[-1], z, rtol=1e-6, atol=1e-6)


def test_inversion_costs_a_row_each_step_and_image(torch_denoiser, levels, latents, prompts):
    denoiser = torch_denoiser()
    pivots_of(denoiser, levels.schedule(STEPS), latents(3), prompts(3), prompts(3))
    assert denoiser.rows_forward == 3 * STEPS
    pivots_of(denoiser, levels.schedule(2), latents(3), prompts(3), prompts(3), guidance_scale=2)
    assert denoiser.rows_forward == 3 * STEPS + 2 * 2 * 3


def test_a_batch_is_inverted_as_each_image_alone(torch_denoiser, levels, latents, prompts):
    denoiser, schedule, z, cond = torch_denoiser(), levels.schedule(3), latents(3), prompts(3)
    noise, back = there_and_back(denoiser, schedule, z, cond)
    for image in range(3):
        one = torch.tensor([image])
        alone = there_and_back(denoiser, schedule, z[one], cond.select(one))
        torch.testing.assert_close(alone, (noise[one], back[one]), rtol=1e-10, atol=1e-10)


def test_unknown_places_to_ask_are_refused():
    with pytest.raises(ValueError, match="asked_at='middle' is unknown; accepted are destination"):
        ddim.DDIMOptions(asked_at="middle")
