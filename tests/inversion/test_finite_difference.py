import math

import pytest
import torch

from pivotal.driver import drive
from pivotal.inversion import finite_difference
from pivotal.inversion.finite_difference import FiniteDifferenceOptions, grid
from pivotal.query import Denoise, Noise
from pivotal.schedule import NoiseLevels, ScheduleConfig

STEPS, SCALE = 4, 1.5


def alpha_bar(config, t):
    """The table at a timestep, between integers linear in log sigma."""
    table, product = [], 1.0
    for k in range(config.num_train_timesteps):
        start, end = config.beta_start**0.5, config.beta_end**0.5
        root = start + (end - start) * k / (config.num_train_timesteps - 1)
        product *= 1 - root * root
        table.append(0.5 * math.log((1 - product) / product))
    below = math.floor(t)
    above = min(below + 1, len(table) - 1)
    log_sigma = table[below] + (t - below) * (table[above] - table[below])
    return 1 / (1 + math.exp(2 * log_sigma))


def transcription(config, z, cond, null, options):
    """The author's loop as the field knows it, one image, in plain numbers."""
    timesteps = [999 * i / STEPS for i in range(STEPS + 1)]
    for i in range(STEPS):
        t, t1 = timesteps[i], timesteps[i + 1]
        t_less = max(t - (t1 - t) * options.earlier, 0)
        ab, ab1 = alpha_bar(config, t), alpha_bar(config, t1)

        def ddim(latents, eps, start, end):
            x0 = (latents - (1 - start) ** 0.5 * eps) / start**0.5
            return end**0.5 * x0 + (1 - end) ** 0.5 * eps

        w, z_from = options.guidance_scale, z
        eps = null(z, t) + w * (cond(z, t) - null(z, t))
        z = refined = ddim(z, eps, ab, ab1)
        lowest, lr = math.inf, options.refine_strength
        if i <= STEPS * options.refine_skip:
            continue
        for _ in range(options.refine_iterations):
            eps = null(refined, t_less) + w * (cond(refined, t) - null(refined, t_less))
            z_back = ddim(refined, eps, ab1, ab)
            error = (z_from - z_back).abs().mean().item()
            fall = lowest - error
            if error < lowest:
                z, lowest = refined, error
            if lowest < options.tolerance:
                break
            if options.damping == "published" or fall < options.smallest_fall:
                lr *= 0.9
            refined = refined + (z_from - z_back) * lr
    return z


@pytest.mark.parametrize("damping", ["intended", "published"])
@pytest.mark.parametrize("tolerance", [0.0, 0.02])
def test_it_follows_the_authors_loop(
    calm, calm_unet, gentle, case, there, text, damping, tolerance
):
    one, schedule = case(), gentle(STEPS)
    options = FiniteDifferenceOptions(
        guidance_scale=SCALE, refine_skip=0.2, damping=damping, tolerance=tolerance,
        refine_iterations=5, smallest_fall=1e-3,
    )  # fmt: skip
    ours = there(finite_difference, calm(), schedule, one, options).noise
    unet = calm_unet()
    theirs = transcription(schedule.config, one[0], text(unet, one[1]), text(unet, one[2]), options)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_without_corrections_it_is_guided_ddim_asked_at_the_source(
    calm, calm_unet, gentle, case, there, text
):
    one, schedule = case(), gentle(STEPS)
    options = FiniteDifferenceOptions(guidance_scale=SCALE, refine_iterations=0)
    ours = there(finite_difference, calm(), schedule, one, options).noise
    unet = calm_unet()
    theirs = transcription(schedule.config, one[0], text(unet, one[1]), text(unet, one[2]), options)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("skip", "corrected"), [(0.0, [0, 1, 2]), (0.2, [1, 2]), (1.0, [])])
def test_steps_after_the_skipped_ones_are_corrected_and_with_0_the_first_too(
    calm, gentle, case, there, skip, corrected
):
    options = FiniteDifferenceOptions(refine_skip=skip, refine_iterations=1, tolerance=0.0)
    errors = there(finite_difference, calm(), gentle(3), case(), options).diagnostics["errors"]
    assert errors[0, :, 0].isfinite().nonzero().flatten().tolist() == corrected


def test_the_grid_goes_from_0_to_999(gentle):
    levels = grid(gentle(STEPS)).levels
    assert [level.timestep for level in levels] == [0, 249.75, 499.5, 749.25, 999]
    for level in levels:
        assert level.alpha_bar == pytest.approx(alpha_bar(gentle(STEPS).config, level.timestep))


def test_exact_corrections_descend_the_errors_square(calm, calm_unet, gentle, case, there):
    """The move is minus the gradient of half the squared error, by autograd."""
    one, schedule = case(), gentle(STEPS)
    levels = grid(schedule)
    low, high = levels.levels[2:4]
    options = FiniteDifferenceOptions(
        guidance_scale=SCALE, gradient="exact", refine_iterations=2, smallest_fall=0.0,
        tolerance=0.0, refine_strength=0.05,
    )  # fmt: skip
    origin, proposal = one[0], 1.1 * one[0]
    best, errors = drive(
        finite_difference.refine(origin, proposal, low, high, one[1], one[2], options), calm()
    )
    unet, z = calm_unet(), proposal.clone().requires_grad_()
    a = (low.alpha_bar / high.alpha_bar) ** 0.5
    b = (1 - low.alpha_bar) ** 0.5 - a * (1 - high.alpha_bar) ** 0.5

    def eps(prompt):
        return unet(z, high.timestep, encoder_hidden_states=prompt.hidden_states).sample

    back = a * z + b * (eps(one[2]) + SCALE * (eps(one[1]) - eps(one[2])))
    half_square = (origin - back).square().sum() / 2
    (gradient,) = torch.autograd.grad(half_square, z)
    assert errors[0, 0].item() == pytest.approx((origin - back).abs().mean().item(), rel=1e-6)
    assert errors[0, 1] < errors[0, 0]
    torch.testing.assert_close(best, (z - 0.05 * gradient).detach(), rtol=1e-6, atol=1e-7)


def test_frozen_corrections_are_damped_iterations_of_the_step_downs_own_equation(
    calm, calm_unet, gentle, case, text
):
    """Once they no longer move, the sampler's step from there is where they came from."""
    one, schedule, strength = case(), gentle(STEPS), 0.5
    low, high = grid(schedule).levels[2:4]
    options = FiniteDifferenceOptions(
        guidance_scale=SCALE, gradient="frozen", refine_iterations=3, smallest_fall=0.0,
        tolerance=0.0, refine_strength=strength,
    )  # fmt: skip
    origin, proposal = one[0], 1.1 * one[0]
    best, errors = drive(
        finite_difference.refine(origin, proposal, low, high, one[1], one[2], options), calm()
    )
    unet, z, expected = calm_unet(), proposal, []
    cond, null = text(unet, one[1]), text(unet, one[2])
    for _ in range(3):
        eps = null(z, high.timestep) + SCALE * (cond(z, high.timestep) - null(z, high.timestep))
        x0 = (z - (1 - high.alpha_bar) ** 0.5 * eps) / high.alpha_bar**0.5
        off = origin - (low.alpha_bar**0.5 * x0 + (1 - low.alpha_bar) ** 0.5 * eps)
        expected.append(off.abs().mean().item())
        kept, z = z, z + strength * off
    assert errors[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert expected[2] < 0.5 * expected[0]
    torch.testing.assert_close(best, kept, rtol=1e-6, atol=1e-7)


def test_corrections_bring_guided_round_trips_nearer(calm, gentle, case, there, back, rms):
    one, schedule, errors = case(), gentle(8), {}
    for name, given in {
        "plain": {"refine_iterations": 0},
        "finite": {"earlier": -1.0, "refine_strength": 0.2},  # the null where the way down asks it
        "frozen": {"gradient": "frozen", "refine_strength": 0.3},
        "exact": {"gradient": "exact", "refine_strength": 0.3},
    }.items():
        options = FiniteDifferenceOptions(
            guidance_scale=2.0, refine_skip=0.0, **{"refine_iterations": 4} | given
        )
        inverted = there(finite_difference, calm(), schedule, one, options)
        again = back(finite_difference, calm(), schedule, inverted, one, 2.0, options)
        errors[name] = rms(again - one[0])
    assert errors["exact"] < 0.9 * errors["plain"]
    assert errors["frozen"] < 0.9 * errors["plain"]
    assert errors["finite"] < errors["plain"]


def test_divergence_is_found_and_said(torch_denoiser, gentle, case, there, caplog):
    options = FiniteDifferenceOptions(
        guidance_scale=8.0, refine_strength=5.0, refine_skip=0.0, refine_iterations=6
    )
    inverted = there(finite_difference, torch_denoiser(), gentle(3), case(2), options)
    assert inverted.diagnostics["diverged"].all()
    assert "diverged for 2 of 2 images" in caplog.text
    calmly = FiniteDifferenceOptions(guidance_scale=1.0, refine_iterations=0)
    inverted = there(finite_difference, torch_denoiser(), gentle(3), case(2), calmly)
    assert not inverted.diagnostics["diverged"].any()


def test_rows_stop_each_for_itself(calm, recording, gentle, case, there):
    two, schedule = case(2), gentle(STEPS)
    given = {"guidance_scale": SCALE, "refine_skip": 0.2, "refine_iterations": 4}
    full = there(
        finite_difference, calm(), schedule, two, FiniteDifferenceOptions(tolerance=0.0, **given)
    ).diagnostics["errors"]
    between = full[:, -1, 1].mean().item()
    denoiser = recording(calm())
    options = FiniteDifferenceOptions(tolerance=between, **given)
    found = there(finite_difference, denoiser, schedule, two, options).diagnostics["errors"]
    counts = found.isfinite().sum(dim=-1)
    assert (counts[0] != counts[1]).any()
    assert sum(denoiser.sizes) == 2 * (2 * STEPS + counts.sum())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"refine_iterations": -1}, "refine_iterations=-1; 0 or more"),
        ({"refine_strength": 0.0}, "refine_strength=0.0; it must be above 0"),
        ({"refine_skip": 1.2}, "refine_skip=1.2; 0 to 1"),
        ({"damping": "never"}, "damping='never' is unknown; accepted are intended, published"),
        ({"gradient": "fast"}, "gradient='fast' is unknown; accepted are finite, frozen"),
    ],
)
def test_impossible_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        FiniteDifferenceOptions(**options)


def test_zero_terminal_snr_is_refused_before_anything_is_asked(recording, calm, case, there):
    """Its own grid ends there, whether or not the model's spacing does."""
    config = ScheduleConfig(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    schedule, denoiser = NoiseLevels(config).schedule(STEPS), recording(calm())
    assert schedule.levels[-1].alpha_bar > 0
    with pytest.raises(ValueError, match="needs a finite sigma_max"):
        there(finite_difference, denoiser, schedule, case(), FiniteDifferenceOptions())
    assert not denoiser.batches


def test_an_error_that_is_no_number_is_divergence(calm, gentle, case, there):
    class BreaksWhenCorrecting:
        name, answers, inner, asked = "breaks", frozenset({Denoise}), calm(), 0

        def answer(self, query):
            self.asked += 1
            noise = self.inner.answer(query)
            return noise if self.asked < 6 else Noise(noise.eps * torch.nan, noise.x0)

    options = FiniteDifferenceOptions(refine_skip=0.7, refine_iterations=3, tolerance=0.0)
    found = there(finite_difference, BreaksWhenCorrecting(), gentle(STEPS), case(), options)
    assert found.diagnostics["diverged"].all()
    assert found.noise.isfinite().all()
