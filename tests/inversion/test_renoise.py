import math

import pytest
import torch

from pivotal.inversion import ddim, renoise
from pivotal.inversion.noise_likeness import (
    autocorrelation,
    autocorrelation_gradient,
    patch_divergence,
    patch_divergence_gradient,
    random_shifts,
)
from pivotal.inversion.renoise import ReNoiseOptions

STEPS = 4


def coefficients(low, high):
    a = (high.alpha_bar / low.alpha_bar) ** 0.5
    return a, (1 - high.alpha_bar) ** 0.5 - a * (1 - low.alpha_bar) ** 0.5


def test_no_renoising_is_ddim_inversion(torch_denoiser, gentle, case, there):
    two, schedule = case(2), gentle(STEPS)
    options = ReNoiseOptions(renoise_steps=0, regularisation_steps=0)
    ours = there(renoise, torch_denoiser(), schedule, two, options).noise
    theirs = there(ddim, torch_denoiser(), schedule, two, ddim.DDIMOptions()).noise
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_predictions_are_averaged_as_in_algorithm_1(
    torch_denoiser, plain_unet, gentle, case, there, text
):
    one, schedule = case(), gentle(STEPS)
    options = ReNoiseOptions(
        renoise_steps=3, early_below=300, early_from=1, late_from=3, regularisation_steps=0
    )
    ours = there(renoise, torch_denoiser(), schedule, one, options).noise
    eps, z = text(plain_unet(), one[1]), one[0]
    for low, high in schedule.ascending():
        a, b = coefficients(low, high)
        predictions, renoised = [], z
        for _ in range(4):
            predictions.append(eps(renoised, high.timestep))
            renoised = a * z + b * predictions[-1]
        kept = predictions[1:] if high.timestep < 300 else predictions[3:]
        z = a * z + b * sum(kept) / len(kept)
    torch.testing.assert_close(ours, z, rtol=1e-8, atol=1e-8)


def test_renoising_reconstructs_better_than_ddim(calm, gentle, case, there, back, rms):
    one, schedule = case(), gentle(STEPS)
    errors = []
    for count in (0, 2, 5):
        options = ReNoiseOptions(renoise_steps=count, early_from=9, regularisation_steps=0)
        inverted = there(renoise, calm(), schedule, one, options)
        again = back(renoise, calm(), schedule, inverted, one, 1.0, options)
        errors.append(rms(again - one[0]))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_regularised_predictions_are_nearer_to_noise(latents):
    eps = torch.nn.functional.avg_pool2d(latents(2, side=16), 3, stride=1, padding=1)
    reference, shifts = latents(2, seed=3, side=16), [(1, 1), (1, 1)]
    measures = {
        "divergence_weight": lambda values: autocorrelation(values, shifts),
        "pair_weight": lambda values: patch_divergence(values, reference),
    }
    for off, measure in measures.items():
        options = ReNoiseOptions(regularisation_steps=4, rolls=20, **{off: 0.0})
        moved = renoise.regularise(eps, reference, options, torch.Generator().manual_seed(0))
        assert (measure(moved) < 0.9 * measure(eps)).all()


def test_autocorrelation_by_hand(latents):
    noise = latents(2, side=16)
    found = autocorrelation(noise, [(2, 5), (1, 3)])
    halved = noise.view(2, 4, 8, 2, 8, 2).mean(dim=(3, 5))
    for row in range(2):
        expected = 0.0
        for values, (down, right) in ((noise[row], (2, 5)), (halved[row], (1, 3))):
            side = values.shape[-1]
            for channel in values:
                for dy, dx in ((down, 0), (0, right)):
                    products = [
                        channel[y, x] * channel[(y - dy) % side, (x - dx) % side]
                        for y in range(side)
                        for x in range(side)
                    ]
                    expected += (sum(products).item() / side**2) ** 2
        assert found[row].item() == pytest.approx(expected, rel=1e-9)


def test_patch_divergence_by_hand(latents):
    noise, reference = latents(1), 1.5 * latents(1, seed=1) + 0.2
    expected = 0.0
    for channel in range(4):
        for y in (0, 4):
            for x in (0, 4):
                p = noise[0, channel, y : y + 4, x : x + 4]
                q = reference[0, channel, y : y + 4, x : x + 4]
                pair = [torch.distributions.Normal(part.mean(), part.std()) for part in (p, q)]
                expected += 2 * torch.distributions.kl_divergence(*pair).item()
    assert patch_divergence(noise, reference).item() == pytest.approx(expected, rel=1e-4)


def test_gradients_are_those_of_the_penalties(latents):
    noise, reference, h = latents(1), latents(1, seed=1), 1e-6
    direction = latents(1, seed=2)
    cases = (
        (
            lambda x: autocorrelation(x, random_shifts((8, 8), torch.Generator().manual_seed(4))),
            autocorrelation_gradient(noise, torch.Generator().manual_seed(4)),
        ),
        (
            lambda x: patch_divergence(x, reference),
            patch_divergence_gradient(noise, reference),
        ),
    )
    for penalty, gradient in cases:
        slope = (penalty(noise + h * direction) - penalty(noise - h * direction)) / (2 * h)
        assert math.isclose(slope.item(), (gradient * direction).sum().item(), rel_tol=1e-5)


@pytest.mark.parametrize(
    ("size", "levels"), [((8, 8), 1), ((64, 64), 4), ((16, 24), 2), ((3, 5), 1)]
)
def test_shifts_stay_under_half_of_every_side(size, levels):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        shifts = random_shifts(size, generator)
        assert len(shifts) == levels
        for level, (down, right) in enumerate(shifts):
            assert down <= size[0] / 2 ** (level + 1)
            assert right <= size[1] / 2 ** (level + 1)


def test_impossible_options_are_refused():
    for option in ("renoise_steps", "early_from", "late_from", "regularisation_steps"):
        with pytest.raises(ValueError, match=f"{option}=-1; 0 or more"):
            ReNoiseOptions(**{option: -1})
    with pytest.raises(ValueError, match="rolls=0; 1 or more"):
        ReNoiseOptions(rolls=0)
    with pytest.raises(ValueError, match=f"seed={2**63}; 0 to {2**63 - 1} is possible"):
        ReNoiseOptions(seed=2**63)


def test_penalties_refuse_latents_narrower_than_a_patch(calm, gentle, case, there):
    z, *prompts = case()
    with pytest.raises(ValueError, match="4 x 4 or more and these are 8 x 3; set regularisation"):
        there(renoise, calm(), gentle(2), (z[..., :3], *prompts), ReNoiseOptions())
