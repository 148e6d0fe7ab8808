"""On the Gaussian whose flow is known in closed form, every method's noise converges to the flow's
at the order of its step.

EDICT's, BDIA's and BELM's orders are in `test_exact`. Edit-friendly inversion draws its noise and
has no flow to follow. At guidance 1 null-text and its kin have nothing to fit, and go up as DDIM;
their ablations would ask this denoiser for gradients all the same.
"""

import pytest
import torch

from pivotal.inversion.registry import METHODS

COUNTS = (25, 50, 100)
ORDERS = {  # of the step up; Heun's has two evaluations
    "ddim": 1, "null-text": 1, "null-text-line-search": 1, "null-text-parallel": 1,
    "negative-prompt": 1, "direct": 1, "k-euler": 2,
    "finite-difference": 1, "fixed-point": 1, "renoise": 1, "newton-raphson": 1,
}  # fmt: skip
MORE = {
    "renoise": {"regularisation_steps": 0},  # its penalties are for pictures' noise
    "newton-raphson": {"prior_weight": 0.0},  # which pulls away from the flow
    "fixed-point": {"iterations": 4},
}


def test_every_method_is_here():
    assert set(ORDERS) == set(METHODS) - {
        "edict", "bdia", "belm", "edit-friendly", "null-text-ablation"
    }  # fmt: skip


@pytest.mark.parametrize("name", ORDERS)
def test_the_noise_converges_to_the_flows_at_the_steps_order(
    gaussian, data, fine_levels, there, order, rms, name
):
    method, levels, errors = METHODS[name], fine_levels(), []
    given = {"guidance_scale": 1.0} if method.fits_guidance else {}
    options = method.options_from(given | MORE.get(name, {}))
    denoiser, case = gaussian(levels), (data[0], data[1], data[1])
    for steps in COUNTS:
        schedule = levels.schedule(steps)
        noise = there(method, denoiser, schedule, case, options).noise
        grid = method.grid(schedule, options)
        exact = denoiser.flow(data[0], grid.levels[0], grid.levels[-1])
        errors.append(rms(noise - exact))
    assert errors == sorted(errors, reverse=True)
    assert order(COUNTS, errors) == pytest.approx(ORDERS[name], abs=0.25)


FROZEN = {"guidance_scale": 1.0, "gradient": "frozen", "refine_skip": 0.0, "tolerance": 0.0}
VARIANTS = {
    "frozen finite differences at every step": ("finite-difference", FROZEN),
    "fixed point, two evaluations": ("fixed-point", {"iterations": 2}),
    "Anderson": ("fixed-point", {"acceleration": "anderson"}),
    "ReNoise, one renoising": ("renoise", {"regularisation_steps": 0, "renoise_steps": 1}),
    "Newton-Raphson, four iterations": ("newton-raphson", {"prior_weight": 0.0, "iterations": 4}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_implicit_methods_variants_converge_at_the_steps_order_too(
    gaussian, data, fine_levels, there, order, rms, variant
):
    name, given = VARIANTS[variant]
    method, levels, errors = METHODS[name], fine_levels(), []
    denoiser, case = gaussian(levels), (data[0], data[1], data[1])
    for steps in COUNTS:
        schedule, options = levels.schedule(steps), method.options_from(given)
        noise = there(method, denoiser, schedule, case, options).noise
        grid = method.grid(schedule, options)
        errors.append(rms(noise - denoiser.flow(data[0], grid.levels[0], grid.levels[-1])))
    assert errors == sorted(errors, reverse=True)
    assert order(COUNTS, errors) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("name", ["fixed-point", "renoise", "newton-raphson", "finite-difference"])
def test_the_round_trip_of_the_implicit_methods_is_better_than_ddims_at_every_count(
    gaussian, data, fine_levels, there, back, rms, name
):
    """They undo the sampler's step itself, so what is left is what was not iterated."""
    levels, given = fine_levels(), {**MORE, "finite-difference": FROZEN}
    denoiser, case = gaussian(levels), (data[0], data[1], data[1])
    for steps in COUNTS[:2]:
        schedule, errors = levels.schedule(steps), {}
        for method in (METHODS["ddim"], METHODS[name]):
            options = method.options_from(given.get(method.name, {}))
            inverted = there(method, denoiser, schedule, case, options)
            again = back(method, denoiser, schedule, inverted, case, 1.0, options)
            errors[method.name] = rms(again - data[0])
        assert errors[name] < 0.5 * errors["ddim"]


@pytest.mark.parametrize("name", ["edict", "bdia", "belm", "direct", "edit-friendly"])
def test_the_exact_methods_come_back_exactly_at_every_count(
    gaussian, data, fine_levels, there, back, name
):
    method, levels = METHODS[name], fine_levels()
    options = method.options_from({"guidance_scale": 1.0})
    denoiser, case = gaussian(levels), (data[0], data[1], data[1])
    for steps in (5, 50):
        schedule = levels.schedule(steps)
        inverted = there(method, denoiser, schedule, case, options)
        again = back(method, denoiser, schedule, inverted, case, 1.0, options)
        torch.testing.assert_close(again, data[0], rtol=1e-8, atol=1e-8)
