"""EDICT, BDIA and BELM: inversions with an exact inverse."""

import pytest
import torch

from pivotal.control import NoEdit
from pivotal.inversion import ddim, edict, two_step
from pivotal.inversion.base import Inverted
from pivotal.inversion.edict import EDICTOptions
from pivotal.inversion.two_step import BDIAOptions, BELMOptions
from pivotal.schedule import NoiseLevels, ScheduleConfig

STEPS = 4
EXACT = {"rtol": 1e-9, "atol": 1e-9}
CASES = {
    "edict": (edict, EDICTOptions),
    "edict, even mixing": (edict, lambda **o: EDICTOptions(mixing=0.5, **o)),
    "bdia": (two_step, BDIAOptions),
    "bdia, gamma 0.8": (two_step, lambda **o: BDIAOptions(gamma=0.8, **o)),
    "belm": (two_step, BELMOptions),
}


def coefficients(start, end):
    a = (end.alpha_bar / start.alpha_bar) ** 0.5
    return a, (1 - end.alpha_bar) ** 0.5 - a * (1 - start.alpha_bar) ** 0.5


def guided(cond, null, scale):
    return lambda z, t: null(z, t) + scale * (cond(z, t) - null(z, t))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("offset", [0, 1])
def test_the_round_trip_is_exact_to_float_precision(calm, case, there, back, name, scale, offset):
    module, options = CASES[name]
    schedule = NoiseLevels(ScheduleConfig(beta_end=0.003, steps_offset=offset)).schedule(STEPS)
    two, options = case(2), options(guidance_scale=scale)
    inverted = there(module, calm(), schedule, two, options)
    assert (inverted.noise - two[0]).abs().max() > 0.1
    again = back(module, calm(), schedule, inverted, two, scale, options)
    torch.testing.assert_close(again, two[0], **EXACT)


@pytest.mark.parametrize("name", CASES)
def test_a_float32_network_still_comes_back_to_float32s_precision(
    torch_denoiser, gentle, case, there, back, name
):
    module, options = CASES[name]
    one, options = case(dtype=torch.float32), options(guidance_scale=1.0)
    denoiser, schedule = torch_denoiser(dtype=torch.float32), gentle(STEPS)
    inverted = there(module, denoiser, schedule, one, options)
    again = back(module, denoiser, schedule, inverted, one, 1.0, options)
    torch.testing.assert_close(again, one[0], rtol=1e-4, atol=1e-4)


def test_edict_samples_by_the_papers_equations(
    torch_denoiser, plain_unet, gentle, case, there, back, text
):
    one, schedule, scale, p = case(), gentle(STEPS), 2.0, 0.9
    options = EDICTOptions(guidance_scale=scale, mixing=p)
    inverted = there(edict, torch_denoiser(), schedule, one, options)
    ours = back(edict, torch_denoiser(), schedule, inverted, one, scale, options)
    unet = plain_unet()
    eps = guided(text(unet, one[1]), text(unet, one[2]), scale)
    x, y = inverted.noise, inverted.stored["partner"]
    for step, high, low in schedule.descending():
        a, b = coefficients(high, low)
        t = high.timestep
        if step % 2 == 0:  # Eq. 14, the roles alternating
            x_inter = a * x + b * eps(y, t)
            y_inter = a * y + b * eps(x_inter, t)
        else:
            y_inter = a * y + b * eps(x, t)
            x_inter = a * x + b * eps(y_inter, t)
        x = p * x_inter + (1 - p) * y_inter  # Eq. 15
        y = p * y_inter + (1 - p) * x
    torch.testing.assert_close(ours, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours, one[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.8, 1.0])
def test_bdia_samples_by_the_papers_equation(
    torch_denoiser, plain_unet, gentle, case, there, back, text, gamma
):
    one, schedule, options = case(), gentle(STEPS), BDIAOptions(gamma=gamma)
    inverted = there(two_step, torch_denoiser(), schedule, one, options)
    ours = back(two_step, torch_denoiser(), schedule, inverted, one, 1.0, options)
    eps, levels = text(plain_unet(), one[1]), schedule.levels

    def ddim_change(z, noise, start, end):  # Delta(start -> end | z)
        a, b = coefficients(start, end)
        return a * z + b * noise - z

    z = {STEPS: inverted.noise, STEPS - 1: inverted.stored["second"]}
    for i in range(STEPS - 1, 0, -1):  # Eq. 17 of arXiv:2307.10829
        noise = eps(z[i], levels[i].timestep)
        down = ddim_change(z[i], noise, levels[i], levels[i - 1])
        up = ddim_change(z[i], noise, levels[i], levels[i + 1])
        z[i - 1] = gamma * (z[i + 1] - z[i]) - gamma * up + z[i] + down
    torch.testing.assert_close(ours, z[0], rtol=1e-6, atol=1e-6)


def test_belm_samples_by_the_papers_equation(
    torch_denoiser, plain_unet, gentle, case, there, back, text
):
    one, schedule, options = case(), gentle(STEPS), BELMOptions()
    inverted = there(two_step, torch_denoiser(), schedule, one, options)
    ours = back(two_step, torch_denoiser(), schedule, inverted, one, 1.0, options)
    eps, levels = text(plain_unet(), one[1]), schedule.levels
    alpha = [level.alpha_bar**0.5 for level in levels]
    sigma = [level.sigma for level in levels]
    x = {
        STEPS: inverted.noise / alpha[STEPS],
        STEPS - 1: inverted.stored["second"] / alpha[STEPS - 1],
    }
    for i in range(STEPS - 1, 0, -1):  # Eq. 18 of arXiv:2410.07273, in sigma space
        h, h_next = sigma[i] - sigma[i - 1], sigma[i + 1] - sigma[i]
        noise = eps(alpha[i] * x[i], levels[i].timestep)
        x[i - 1] = (
            h**2 / h_next**2 * x[i + 1]
            + (h_next**2 - h**2) / h_next**2 * x[i]
            - h * (h + h_next) / h_next * noise
        )
    torch.testing.assert_close(ours, alpha[0] * x[0], rtol=1e-6, atol=1e-6)


def test_edict_inverts_by_the_papers_equations(
    torch_denoiser, plain_unet, gentle, case, there, text
):
    one, schedule, scale, p = case(), gentle(STEPS), 2.0, 0.9
    options = EDICTOptions(guidance_scale=scale, mixing=p)
    inverted = there(edict, torch_denoiser(), schedule, one, options)
    unet = plain_unet()
    eps = guided(text(unet, one[1]), text(unet, one[2]), scale)
    x = y = one[0]
    for i, (low, high) in enumerate(schedule.ascending()):
        a, b = coefficients(high, low)
        t = high.timestep
        y_inter = (y - (1 - p) * x) / p  # Eq. 16
        x_inter = (x - (1 - p) * y_inter) / p
        if (STEPS - 1 - i) % 2 == 0:  # Eq. 17, the roles alternating as on the way down
            y = (y_inter - b * eps(x_inter, t)) / a
            x = (x_inter - b * eps(y, t)) / a
        else:
            x = (x_inter - b * eps(y_inter, t)) / a
            y = (y_inter - b * eps(x, t)) / a
    torch.testing.assert_close(inverted.noise, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(inverted.stored["partner"], y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.8, 1.0])
def test_bdia_inverts_by_the_papers_equation_solved_for_the_noisier_latents(
    torch_denoiser, plain_unet, gentle, case, there, text, gamma
):
    one, schedule = case(), gentle(STEPS)
    inverted = there(two_step, torch_denoiser(), schedule, one, BDIAOptions(gamma=gamma))
    eps, levels = text(plain_unet(), one[1]), schedule.levels

    def ddim_change(z, noise, start, end):
        a, b = coefficients(start, end)
        return a * z + b * noise - z

    first = eps(one[0], levels[1].timestep)  # the first step up is DDIM's
    z = {0: one[0], 1: one[0] + ddim_change(one[0], first, levels[0], levels[1])}
    for i in range(1, STEPS):  # Eq. 18 of arXiv:2307.10829
        noise = eps(z[i], levels[i].timestep)
        down = ddim_change(z[i], noise, levels[i], levels[i - 1])
        up = ddim_change(z[i], noise, levels[i], levels[i + 1])
        z[i + 1] = z[i] + up + (z[i - 1] - z[i] - down) / gamma
    torch.testing.assert_close(inverted.noise, z[STEPS], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(inverted.stored["second"], z[STEPS - 1], rtol=1e-6, atol=1e-6)


def test_belm_inverts_by_the_papers_equation(torch_denoiser, plain_unet, gentle, case, there, text):
    one, schedule = case(), gentle(STEPS)
    inverted = there(two_step, torch_denoiser(), schedule, one, BELMOptions())
    eps, levels = text(plain_unet(), one[1]), schedule.levels
    alpha = [level.alpha_bar**0.5 for level in levels]
    sigma = [level.sigma for level in levels]
    a, b = coefficients(levels[0], levels[1])  # the first step up is DDIM's
    first = a * one[0] + b * eps(one[0], levels[1].timestep)
    x = {0: one[0] / alpha[0], 1: first / alpha[1]}
    for i in range(1, STEPS):  # O-BELM's inversion, Eq. 19 of arXiv:2410.07273, in sigma space
        h, h_next = sigma[i] - sigma[i - 1], sigma[i + 1] - sigma[i]
        noise = eps(alpha[i] * x[i], levels[i].timestep)
        x[i + 1] = (
            h_next**2 / h**2 * x[i - 1]
            + (h**2 - h_next**2) / h**2 * x[i]
            + h_next * (h + h_next) / h * noise
        )
    top, second = alpha[STEPS] * x[STEPS], alpha[STEPS - 1] * x[STEPS - 1]
    torch.testing.assert_close(inverted.noise, top, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(inverted.stored["second"], second, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["bdia", "bdia, gamma 0.8", "belm"])
def test_constant_noise_is_followed_exactly(levels, name):
    """Latents on a straight line in sigma space stay on it."""
    _, options = CASES[name]
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    low, middle, high = levels.schedule(50).levels[10:13]

    def at(level):
        return level.alpha_bar**0.5 * x0 + (1 - level.alpha_bar) ** 0.5 * eps

    far, near, slope = options().coefficients(low, middle, high)
    torch.testing.assert_close(far * at(high) + near * at(middle) + slope * eps, at(low))


@pytest.mark.parametrize("name", ["bdia", "belm", "edict"])
def test_the_noise_converges_to_the_flows(gaussian, data, fine_levels, there, order, rms, name):
    module, options = CASES[name]
    levels, counts, errors = fine_levels(), (50, 100, 200, 400), []
    denoiser, case = gaussian(levels), (data[0], data[1], data[1])
    for steps in counts:
        schedule, made = levels.schedule(steps), options(guidance_scale=1.0)
        if name == "edict":  # mixing once a step averages over more and more steps otherwise
            made = EDICTOptions(guidance_scale=1.0, mixing=1.0)
        noise = there(module, denoiser, schedule, case, made).noise
        exact = denoiser.flow(data[0], schedule.levels[0], schedule.levels[-1])
        errors.append(rms(noise - exact))
    assert errors == sorted(errors, reverse=True)
    # A two-step sampler's first step up is DDIM's, of first order.
    assert order(counts, errors) > 0.9


@pytest.mark.parametrize(("name", "least"), [("bdia", 1.0), ("belm", 1.9)])
def test_from_two_latents_on_the_flow_belm_is_of_second_order_and_bdia_of_first(
    gaussian, data, fine_levels, back, order, rms, name, least
):
    module, options = CASES[name]
    levels, counts, errors = fine_levels(), (50, 100, 200, 400), []
    denoiser, case = gaussian(levels), (None, data[1], data[1])
    for steps in counts:
        schedule = levels.schedule(steps)
        clean = schedule.levels[0]
        pair = [denoiser.flow(data[0], clean, level) for level in schedule.levels[-2:]]
        inverted = Inverted(pair[1], {"second": pair[0]})
        again = back(module, denoiser, schedule, inverted, case, 1.0, options(guidance_scale=1.0))
        errors.append(rms(again - data[0]))
    assert order(counts, errors) > least


@pytest.mark.parametrize("name", ["edict", "bdia", "belm"])
def test_what_a_control_changes_stays_changed(calm, gentle, case, there, back, name):
    """A control that puts the target where the source is, everywhere and always, ends there."""
    module, options = CASES[name]
    schedule, two, options = gentle(STEPS), case(2), options(guidance_scale=1.0)

    class Copying(NoEdit):
        def sources(self, rows):
            return torch.zeros(rows, dtype=torch.int64)

        def after_step(self, step, latents, word_maps):
            return latents[[0, 0]]

    one = (two[0][:1], *(part.select(torch.tensor([0])) for part in two[1:]))
    inverted = there(module, calm(), schedule, one, options)
    pair = (None, two[1], two[2])
    again = back(module, calm(), schedule, inverted.expand(2), pair, 1.0, options, Copying())
    torch.testing.assert_close(again, one[0][[0, 0]], **EXACT)


def test_edicts_pair_is_put_back_together(calm, recording, gentle, case, there, back):
    """Where a target was given the source's latents, both of its pair are the source's."""

    class Copying(NoEdit):
        def sources(self, rows):
            return torch.zeros(rows, dtype=torch.int64)

        def after_step(self, step, latents, word_maps):
            return latents[[0, 0]]

    schedule, two, options = gentle(STEPS), case(2), EDICTOptions(guidance_scale=1.0)
    one, denoiser = (two[0][:1], *(part.select(torch.tensor([0])) for part in two[1:])), calm()
    inverted, asked = there(edict, denoiser, schedule, one, options), recording(denoiser)
    back(edict, asked, schedule, inverted.expand(2), two, 1.0, options, Copying())
    for query in asked.batches[::2]:  # the first of each step: of the one latents or the other
        torch.testing.assert_close(query.latents[1], query.latents[0], rtol=0, atol=0)


def test_where_the_last_step_stands_still_belm_asks_ddims_rows(torch_denoiser, case, there):
    schedule = NoiseLevels(ScheduleConfig(beta_end=0.003, steps_offset=0)).schedule(STEPS)
    assert schedule.levels[0].alpha_bar == schedule.levels[1].alpha_bar
    denoiser = torch_denoiser()
    there(two_step, denoiser, schedule, case(), BELMOptions())
    assert denoiser.rows_forward == STEPS - 1
    denoiser = torch_denoiser()
    there(ddim, denoiser, schedule, case(), ddim.DDIMOptions())
    assert denoiser.rows_forward == STEPS


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: EDICTOptions(mixing=0.0), "mixing=0.0; above 0 and up to 1"),
        (lambda: EDICTOptions(mixing=1.1), "mixing=1.1; above 0 and up to 1"),
        (lambda: BDIAOptions(gamma=0.0), "gamma=0.0; above 0 and up to 1"),
    ],
)
def test_impossible_options_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
