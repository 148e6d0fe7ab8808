"""Every sampler: by property, against plain transcriptions, and on a Gaussian's exact flow."""

import itertools
import math

import numpy as np
import pytest
import torch

from pivotal.control import NoEdit
from pivotal.driver import drive
from pivotal.query import Conditioning, Noise
from pivotal.sampling import ddim, dpm_solver, euler, linear_multistep
from pivotal.sampling.draws import drawn_from, seeded
from pivotal.sampling.euler import ancestral_sigmas
from pivotal.sampling.linear_multistep import multistep_weights
from pivotal.sampling.posterior import posterior_mean, posterior_std
from pivotal.sampling.samplers import SAMPLERS, sampler_named, schedule_of_step_size
from pivotal.schedule import NoiseLevels, ScheduleConfig

STEPS, SCALE = 4, 2.0


def gentle(steps=STEPS, **config):
    return NoiseLevels(ScheduleConfig(beta_end=0.003, steps_offset=1, **config)).schedule(steps)


def fine(steps, count=12800):
    config = ScheduleConfig(
        num_train_timesteps=count, beta_schedule="linear", beta_start=0.1 / count,
        beta_end=20 / count, timestep_spacing="trailing",
    )  # fmt: skip
    return NoiseLevels(config).schedule(steps)


@pytest.fixture
def run(torch_denoiser, latents, prompts):
    """`run(sample, schedule, rows=.., **more)` on the tiny UNet, guided."""

    def make(sample, schedule, *, rows=1, denoiser=None, noise=None, **more):
        null = prompts(rows, seed=2)
        noise = latents(rows) if noise is None else noise
        algorithm = sample(
            schedule, noise, prompts(rows, seed=1), lambda step: null, SCALE, NoEdit(), **more
        )
        return drive(algorithm, denoiser or torch_denoiser())

    return make


@pytest.fixture
def eps(plain_unet, prompts):
    """The guided prediction in plain terms: (z, t) -> eps."""
    unet, cond, null = plain_unet(), prompts(seed=1), prompts(seed=2)

    def guided(latents, timestep):
        with torch.no_grad():
            both = [
                unet(latents, timestep, encoder_hidden_states=prompt.hidden_states).sample
                for prompt in (null, cond)
            ]
        return both[0] + SCALE * (both[1] - both[0])

    return guided


def in_sigma_space(schedule, noise, eps, step):
    """A sampler of k-diffusion: `step(i, x, eps_of_x, sigmas)` from i to i + 1, noisy to clean."""
    levels = list(reversed(schedule.levels))
    sigmas = [level.sigma for level in levels]
    x = noise * (1 + sigmas[0] ** 2) ** 0.5
    for i, level in enumerate(levels[:-1]):
        found = eps(x / (1 + sigmas[i] ** 2) ** 0.5, level.timestep)
        x = step(i, x, found, sigmas)
    return x / (1 + sigmas[-1] ** 2) ** 0.5


def test_euler_is_ddim_through_the_change_of_variables(run):
    for to_one in (False, True):
        schedule = gentle(set_alpha_to_one=to_one)
        ours, theirs = run(euler.sample, schedule), run(ddim.sample, schedule)
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_lms_of_order_one_is_euler(run):
    ours = run(linear_multistep.sample, gentle(), order=1)
    torch.testing.assert_close(ours, run(euler.sample, gentle()), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("order", [2, 4])
def test_lms_is_k_diffusions(run, eps, latents, order):
    history = []

    def step(i, x, found, sigmas):
        history.append(found)
        used = min(i + 1, order)
        for back in range(used):  # the Lagrange polynomial of node i - back, by a fine sum
            grid = np.linspace(sigmas[i], sigmas[i + 1], 2001)
            values = np.ones_like(grid)
            for other in range(used):
                if other != back:
                    values *= (grid - sigmas[i - other]) / (sigmas[i - back] - sigmas[i - other])
            weight = np.trapezoid(values, grid)
            x = x + float(weight) * history[i - back]
        return x

    expected = in_sigma_space(gentle(), latents(), eps, step)
    found = run(linear_multistep.sample, gentle(), order=order)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_multistep_weights_integrate_polynomials_exactly():
    nodes, start, end = [14.0, 9.5, 7.0, 4.0], 4.0, 2.5
    weights = multistep_weights(nodes, start, end)
    for power in range(4):
        exact = (end ** (power + 1) - start ** (power + 1)) / (power + 1)
        found = sum(w * node**power for w, node in zip(weights, nodes, strict=True))
        assert found == pytest.approx(exact, rel=1e-9)
    assert multistep_weights([3.0, 2.0, 2.0], 2.0, 1.0)[1] == 0  # a step that stood still


def test_dpm_solver_is_k_diffusions(run, eps, latents):
    before = []

    def step(i, x, found, sigmas):
        denoised = x - sigmas[i] * found
        t, t_next = -math.log(sigmas[i]), -math.log(sigmas[i + 1])
        h = t_next - t
        if i == 0:
            used = denoised
        else:
            r = (t + math.log(sigmas[i - 1])) / h
            used = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * before[-1]
        before.append(denoised)
        return sigmas[i + 1] / sigmas[i] * x - math.expm1(-h) * used

    expected = in_sigma_space(gentle(), latents(), eps, step)
    found = run(dpm_solver.sample, gentle())
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_dpm_solver_ends_at_sigma_0_and_stands_still_where_the_grid_does(run):
    for config in ({"set_alpha_to_one": True}, {"steps_offset": 0}):
        schedule = NoiseLevels(ScheduleConfig(beta_end=0.003, **config)).schedule(STEPS)
        assert run(dpm_solver.sample, schedule).isfinite().all()
        assert run(linear_multistep.sample, schedule).isfinite().all()


def test_euler_ancestral_is_k_diffusions(run, eps, latents):
    draws = [latents(1, seed=30 + i) for i in range(STEPS)]

    def step(i, x, found, sigmas):
        high, low = sigmas[i], sigmas[i + 1]
        up = min(low, (low**2 * (high**2 - low**2) / high**2) ** 0.5)
        down = (low**2 - up**2) ** 0.5
        return x + found * (down - high) + draws[i] * up

    expected = in_sigma_space(gentle(), latents(), eps, step)
    found = run(euler.sample_ancestral, gentle(), draw=lambda step, z: draws[step])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_ancestral_sigmas_split_the_variance():
    for high, low in itertools.pairwise([14.6, 8.0, 3.0, 0.5, 0.03, 0.0]):
        down, up = ancestral_sigmas(high, low)
        assert down**2 + up**2 == pytest.approx(low**2)
        assert 0 <= up <= low


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_with_eta_is_equation_12(run, eps, latents, eta):
    draws = [latents(1, seed=30 + i) for i in range(STEPS)]
    schedule, z = gentle(), latents()
    for step, high, low in schedule.descending():
        predicted = eps(z, high.timestep)
        ab, ab_low = high.alpha_bar, low.alpha_bar
        sigma = eta * ((1 - ab_low) / (1 - ab)) ** 0.5 * (1 - ab / ab_low) ** 0.5
        x0 = (z - (1 - ab) ** 0.5 * predicted) / ab**0.5
        z = ab_low**0.5 * x0 + (1 - ab_low - sigma**2) ** 0.5 * predicted + sigma * draws[step]
    found = run(ddim.sample, schedule, eta=eta, draw=lambda step, latents: draws[step])
    torch.testing.assert_close(found, z, rtol=1e-6, atol=1e-6)


def test_eta_0_is_ddim_and_draws_nothing(run):
    def never(step, latents):
        raise AssertionError("no noise is needed")

    found = run(ddim.sample, gentle(), eta=0.0, draw=never)
    assert torch.equal(found, run(ddim.sample, gentle()))
    found = run(euler.sample_ancestral, gentle(), eta=0.0, draw=never)
    torch.testing.assert_close(found, run(euler.sample, gentle()), rtol=1e-9, atol=1e-9)


def test_eta_1_has_ddpms_posterior(levels, latents):
    """Mean and variance of q(x_{t-1} | x_t, x0): Ho et al. 2020 (arXiv:2006.11239), Eq. 7."""
    z, x0 = latents(), latents(seed=1)
    for _, high, low in levels.schedule(50).descending():
        beta = 1 - high.alpha_bar / low.alpha_bar
        variance = (1 - low.alpha_bar) / (1 - high.alpha_bar) * beta
        assert posterior_std(high, low, 1.0) ** 2 == pytest.approx(variance, rel=1e-9)
        eps = (z - high.alpha_bar**0.5 * x0) / (1 - high.alpha_bar) ** 0.5
        mean = (
            low.alpha_bar**0.5 * beta / (1 - high.alpha_bar) * x0
            + (1 - beta) ** 0.5 * (1 - low.alpha_bar) / (1 - high.alpha_bar) * z
        )
        found = posterior_mean(Noise(eps, x0), low, posterior_std(high, low, 1.0))
        torch.testing.assert_close(found, mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ddpm", "euler-ancestral"])
def test_stochastic_samplers_sample_the_gaussian(gaussian, name):
    """Many rows, all from pure noise: the mean and deviation of the data come out."""
    levels = NoiseLevels(ScheduleConfig())
    schedule, denoiser = levels.schedule(200), gaussian(levels)
    rows = 64
    nothing = Conditioning(torch.zeros(rows, 1, 1, dtype=torch.float64))
    noise = torch.randn(
        rows, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    algorithm = SAMPLERS[name].sample(
        schedule, noise, nothing, lambda step: nothing, 1.0, NoEdit(),
        draw=seeded(list(range(rows))),
    )  # fmt: skip
    found = drive(algorithm, denoiser)
    assert found.mean().item() == pytest.approx(denoiser.mean, abs=0.03)
    assert found.std().item() == pytest.approx(denoiser.std, abs=0.03)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("ddim", 1.8, 2.2), ("euler", 1.8, 2.2), ("lms", 7.0, 40.0), ("dpm++", 3.4, 4.8)],
)
def test_errors_shrink_at_the_samplers_order(gaussian, name, least, most):
    """By halving the steps, against the probability flow's exact end."""
    errors = []
    for steps in (200, 400):
        schedule = fine(steps)
        denoiser = gaussian(NoiseLevels(schedule.config))
        noise = torch.randn(
            1, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        nothing = Conditioning(torch.zeros(1, 1, 1, dtype=torch.float64))
        found = drive(
            SAMPLERS[name].sample(
                schedule, noise, nothing, lambda step, null=nothing: null, 1.0, NoEdit()
            ),
            denoiser,
        )
        exact = denoiser.flow(noise, schedule.levels[-1], schedule.levels[0])
        errors.append((found - exact).square().mean().sqrt().item())
    assert least < errors[0] / errors[1] < most


@pytest.mark.parametrize("name", SAMPLERS)
def test_two_rows_are_each_alone(run, latents, torch_denoiser, prompts, name):
    sampler, schedule, denoiser = SAMPLERS[name], gentle(3), torch_denoiser()
    seeds = [5, 6]
    more = [{"draw": seeded(given)} if sampler.draws else {} for given in (seeds, [5], [6])]
    both = run(sampler.sample, schedule, rows=2, denoiser=denoiser, **more[0])
    for row in range(2):
        one = torch.tensor([row])
        cond, null = prompts(2, seed=1).select(one), prompts(2, seed=2).select(one)
        alone = drive(
            sampler.sample(
                schedule, latents(2)[one], cond, lambda step, n=null: n, SCALE, NoEdit(),
                **more[1 + row],
            ),
            denoiser,
        )  # fmt: skip
        torch.testing.assert_close(both[one], alone, rtol=1e-6, atol=1e-6)


def test_zero_terminal_snr_is_for_ddim_and_ddpm_alone(run, torch_denoiser):
    config = ScheduleConfig(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    schedule, denoiser = NoiseLevels(config).schedule(3), torch_denoiser("v_prediction")
    for name, sampler in SAMPLERS.items():
        more = {"draw": seeded([0])} if sampler.draws else {}
        if name in ("ddim", "ddpm"):
            assert run(sampler.sample, schedule, denoiser=denoiser, **more).isfinite().all()
        else:
            with pytest.raises(ValueError, match="needs a finite sigma_max"):
                run(sampler.sample, schedule, denoiser=denoiser, **more)


def test_options_are_those_of_the_sampler():
    assert SAMPLERS["lms"].options_from({}) == {"order": 4}
    assert SAMPLERS["ddim"].options_from({"eta": 0.5}) == {"eta": 0.5}
    for name, given, sentence in (
        (
            "euler",
            {"eta": 0.5},
            "euler has no option 'eta'.*none; eta is for ddim, euler-ancestral",
        ),
        ("ddim", {"rho": 7.0}, "ddim has no option 'rho', given as 7.0; its options are: eta$"),
        ("ddim", {"eta": float("nan")}, "eta=nan; 0 to 1"),
        ("lms", {"order": 1.5}, r"order=1\.5; a whole number"),
    ):
        with pytest.raises(ValueError, match=sentence):
            SAMPLERS[name].options_from(given)


def test_wrong_words_and_numbers_are_refused(run, levels, latents):
    with pytest.raises(ValueError, match="sampler='heun' is unknown; accepted are ddim, ddpm"):
        sampler_named("heun")
    assert sampler_named("lms").name == "lms"
    with pytest.raises(ValueError, match="order=0; 1 or more"):
        run(linear_multistep.sample, gentle(), order=0)
    with pytest.raises(ValueError, match=r"eta=1\.5; 0 to 1"):
        run(ddim.sample, gentle(), eta=1.5, draw=seeded([0]))
    with pytest.raises(ValueError, match="fresh noise needs a source"):
        run(ddim.sample, gentle(), eta=0.5)
    with pytest.raises(ValueError, match="1 generators for 2 rows"):
        seeded([0])(0, latents(2))
    assert drawn_from(torch.Generator())(0, latents(2)).shape == latents(2).shape
    assert schedule_of_step_size(levels, 20).steps == 50
    for size in (0, 3, 2000):
        with pytest.raises(ValueError, match=f"step_size={size}; a divisor of 1000"):
            schedule_of_step_size(levels, size)
