import pytest
import torch

from pivotal.inversion import ddim, newton
from pivotal.inversion.newton import NewtonOptions
from pivotal.query import Denoise, Noise

STEPS = 4


def transcription(unet, schedule, z, cond, null, options):
    """The paper's update with autograd through the network: z^{k+1} = z^k - F / (D dF/dz)."""
    for low, high in schedule.ascending():
        a = (high.alpha_bar / low.alpha_bar) ** 0.5
        b = (1 - high.alpha_bar) ** 0.5 - a * (1 - low.alpha_bar) ** 0.5
        variance = 1 - a * a
        start, iterate, tried = z, z, []
        for _ in range(options.iterations):
            iterate = iterate.detach().requires_grad_()

            def eps(prompt, at=iterate, level=high):
                hidden = prompt.hidden_states
                return unet(at, level.timestep, encoder_hidden_states=hidden).sample

            w = options.guidance_scale
            guided = eps(cond) if w == 1 else eps(null) + w * (eps(cond) - eps(null))
            mapped = a * start + b * guided
            shown = mapped if options.through_network else mapped.detach()
            prior = (iterate - a * start).square().sum() / (2 * variance)
            scalar = (iterate - shown).abs().sum() + options.prior_weight * prior
            (gradient,) = torch.autograd.grad(scalar, iterate)
            tried.append((scalar.item(), mapped.detach()))
            floor = options.smallest_gradient
            signs = torch.where(gradient < 0, -1.0, 1.0)
            gradient = signs * gradient.abs().clamp(min=floor)
            iterate = iterate.detach() - scalar.detach() / iterate.numel() / gradient
        z = min(tried, key=lambda pair: pair[0])[1]
    return z


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("through", [True, False])
def test_iterations_are_the_papers(torch_denoiser, plain_unet, gentle, case, there, scale, through):
    one, schedule = case(), gentle(STEPS)
    options = NewtonOptions(
        iterations=3, prior_weight=0.05, through_network=through, guidance_scale=scale
    )
    ours = there(newton, torch_denoiser(), schedule, one, options).noise
    theirs = transcription(plain_unet(), schedule, *one, options)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_one_iteration_is_ddim_inversion(torch_denoiser, gentle, case, there):
    two, schedule = case(2), gentle(STEPS)
    ours = there(newton, torch_denoiser(), schedule, two, NewtonOptions(iterations=1))
    theirs = there(ddim, torch_denoiser(), schedule, two, ddim.DDIMOptions())
    torch.testing.assert_close(ours.noise, theirs.noise, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("through", [True, False])
def test_the_first_step_comes_nearer_to_the_root(calm, gentle, case, there, through):
    options = NewtonOptions(iterations=3, through_network=through, prior_weight=0.0)
    found = there(newton, calm(), gentle(8), case(2), options).diagnostics["residuals"]
    assert (found.amin(dim=-1) < 0.9 * found[:, :, 0]).float().mean() > 0.7


def test_it_reconstructs_better_than_ddim(calm, gentle, case, there, back, rms):
    two, schedule, errors = case(2), gentle(STEPS), []
    for iterations in (1, 8):
        options = NewtonOptions(iterations=iterations, prior_weight=0.0)
        inverted = there(newton, calm(), schedule, two, options)
        again = back(newton, calm(), schedule, inverted, two, 1.0, options)
        errors.append(rms(again - two[0]))
    assert errors[1] < 0.8 * errors[0]


def test_a_strong_prior_stays_with_the_noising_distributions_mean(
    torch_denoiser, gentle, case, there
):
    one, schedule = case(), gentle(STEPS)
    strayed = []
    for weight in (0.0, 10.0):
        options = NewtonOptions(iterations=4, prior_weight=weight)
        inverted = there(newton, torch_denoiser(), schedule, one, options)
        strayed.append(inverted.diagnostics["residuals"][0, :, -1].mean())
    assert strayed[1] > strayed[0]


@pytest.mark.parametrize(("through", "forward", "backward"), [(False, 3, 0), (True, 5, 2)])
def test_the_cost_is_what_the_registry_says(
    torch_denoiser, gentle, case, there, through, forward, backward
):
    denoiser, options = torch_denoiser(), NewtonOptions(iterations=3, through_network=through)
    there(newton, denoiser, gentle(STEPS), case(2), options)
    assert denoiser.rows_forward == 2 * STEPS * forward
    assert denoiser.rows_backward == 2 * STEPS * backward


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"iterations": 0}, "iterations=0; 1 or more"),
        ({"prior_weight": -1.0}, "prior_weight=-1.0; 0 or more"),
        ({"smallest_gradient": 0.0}, "smallest_gradient=0.0; it must be above 0"),
    ],
)
def test_impossible_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        NewtonOptions(**options)


def test_what_is_not_a_number_is_not_hidden(gentle, case, there):
    class Broken:
        name, answers = "broken", frozenset({Denoise})

        def answer(self, query):
            eps = torch.full_like(query.latents, torch.nan)
            return Noise(eps, eps)

    assert there(newton, Broken(), gentle(STEPS), case(), NewtonOptions()).noise.isnan().all()
