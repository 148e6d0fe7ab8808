import numpy as np
import pytest
import torch

from pivotal.control import NoEdit
from pivotal.driver import drive
from pivotal.inversion import ddim, negative_prompt
from pivotal.inversion.negative_prompt import (
    NegativePromptOptions,
    magnitude_quantile,
    proximal_guide,
)
from pivotal.query import Noise
from pivotal.sampling.ddim import sample
from pivotal.schedule import NoiseLevel

STEPS = 4
LEVEL = NoiseLevel(0.5, 300.0)


class FirstIsSource(NoEdit):
    def sources(self, rows):
        return torch.zeros(rows, dtype=torch.int64)


def noises(latents, level=LEVEL):
    """Latents and two predictions of their noise."""
    z = latents(2)

    def noise(seed):
        eps = latents(2, seed=seed)
        return Noise(eps, (z - (1 - level.alpha_bar) ** 0.5 * eps) / level.alpha_bar**0.5)

    return z, noise(1), noise(2)


def test_a_targets_null_is_its_sources_prompt(torch_denoiser, gentle, case, there, back, some):
    two, schedule, options = case(2), gentle(STEPS), NegativePromptOptions()
    inverted = there(negative_prompt, torch_denoiser(), schedule, some(two, [0]), options)
    ours = back(
        negative_prompt,
        torch_denoiser(),
        schedule,
        inverted.expand(2),
        two,
        4.0,
        options,
        FirstIsSource(),
    )
    source = two[1].select(torch.tensor([0, 0]))
    expected = drive(
        sample(schedule, inverted.expand(2).noise, two[1], lambda step: source, 4.0, NoEdit()),
        torch_denoiser(),
    )
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["none", "soft", "hard"])
def test_source_and_target_are_the_papers(
    torch_denoiser, plain_unet, gentle, case, there, back, text, some, kind
):
    """Miyake et al.'s sampler with Han et al.'s threshold, literally; the threshold acts late."""
    two, schedule, scale = case(2), gentle(STEPS), 3.0
    options = NegativePromptOptions(proximal=kind, proximal_below=600.0)
    inverted = there(negative_prompt, torch_denoiser(), schedule, some(two, [0]), options)
    control = FirstIsSource()
    rows = inverted.expand(2)
    ours = back(negative_prompt, torch_denoiser(), schedule, rows, two, scale, options, control)
    unet = plain_unet()
    source, target = (text(unet, two[1].select(torch.tensor([row]))) for row in range(2))
    for row, prompt in enumerate((source, target)):
        z = inverted.noise
        for high, low in zip(schedule.levels[:0:-1], schedule.levels[-2::-1], strict=True):
            uncond = source(z, high.timestep)
            difference = prompt(z, high.timestep) - uncond
            if kind != "none" and high.timestep < 600:
                threshold = np.quantile(difference.abs().numpy(), 0.7)
                shrunk = difference.sign() * (difference.abs() - threshold).clamp(min=0)
                kept = difference * (difference.abs() > threshold)
                difference = shrunk if kind == "soft" else kept
            eps = uncond + scale * difference
            x0 = (z - (1 - high.alpha_bar) ** 0.5 * eps) / high.alpha_bar**0.5
            z = low.alpha_bar**0.5 * x0 + (1 - low.alpha_bar) ** 0.5 * eps
        torch.testing.assert_close(ours[row : row + 1], z, rtol=1e-6, atol=1e-7)


def test_at_any_guidance_the_source_is_reconstructed_as_ddim_does_at_one(
    torch_denoiser, gentle, case, there, back
):
    one, schedule, options = case(), gentle(STEPS), NegativePromptOptions()
    inverted = there(negative_prompt, torch_denoiser(), schedule, one, options)
    expected = back(ddim, torch_denoiser(), schedule, inverted, one, 1.0, ddim.DDIMOptions())
    for scale in (1.0, 7.5):
        found = back(negative_prompt, torch_denoiser(), schedule, inverted, one, scale, options)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.7, 1.0])
def test_the_threshold_is_numpys_quantile_of_each_row(latents, quantile):
    values = latents(3)
    for row, found in zip(values, magnitude_quantile(values, quantile), strict=True):
        assert found.item() == pytest.approx(np.quantile(row.abs().numpy(), quantile))


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_difference_is_thresholded_as_the_paper_says(latents, kind):
    _, uncond, cond = noises(latents)
    options = NegativePromptOptions(proximal=kind, quantile=0.7)
    found = proximal_guide(uncond, cond, 5.0, LEVEL, latents(2), options)
    for row in range(2):
        difference = (cond.eps - uncond.eps)[row]
        threshold = np.quantile(difference.abs().numpy(), 0.7)
        if kind == "soft":  # the proximal operator of the l1 norm
            kept = difference.sign() * (difference.abs() - threshold).clamp(min=0)
        else:  # of the l0 norm
            kept = difference * (difference.abs() > threshold)
        expected = uncond.eps[row] + 5.0 * kept
        torch.testing.assert_close(found.eps[row], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_eps_and_x0_stay_those_of_the_same_latents(latents, kind):
    z, uncond, cond = noises(latents)
    found = proximal_guide(
        uncond, cond, 5.0, LEVEL, latents(2), NegativePromptOptions(proximal=kind)
    )
    again = LEVEL.alpha_bar**0.5 * found.x0 + (1 - LEVEL.alpha_bar) ** 0.5 * found.eps
    torch.testing.assert_close(again, z, rtol=1e-10, atol=1e-10)


def test_it_acts_under_its_timestep_alone(latents):
    _, uncond, cond = noises(latents)
    options = NegativePromptOptions(proximal="hard", proximal_below=300.0)
    found = proximal_guide(uncond, cond, 5.0, LEVEL, latents(2), options)
    torch.testing.assert_close(found.eps, uncond.eps + 5.0 * (cond.eps - uncond.eps))


def test_inversion_guidance_pulls_to_the_image_where_nothing_may_change(latents):
    _, uncond, cond = noises(latents)
    clean = latents(2, seed=9)
    options = NegativePromptOptions(
        proximal="hard", quantile=0.99, inversion_guidance=1.0, dilate=1
    )
    plain = NegativePromptOptions(proximal="hard", quantile=0.99)
    found = proximal_guide(uncond, cond, 5.0, LEVEL, clean, options)
    free = proximal_guide(uncond, cond, 5.0, LEVEL, clean, plain)
    pulled = torch.isclose(found.x0, clean)
    assert pulled.any()
    beyond = (found.eps - uncond.eps).abs() > 1e-12
    assert beyond.any()
    assert not (pulled & beyond).any()
    torch.testing.assert_close(found.x0[~pulled], free.x0[~pulled])
    for row, channel, y, x in beyond.nonzero().tolist():  # a latent around each is spared too
        around = pulled[row, channel, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        assert not around.any()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"proximal": "l2"}, "proximal='l2' is unknown; accepted are none, soft, hard"),
        ({"quantile": 1.5}, "quantile=1.5; 0 to 1 is possible"),
        ({"inversion_guidance": 0.5}, "choose proximal=soft or proximal=hard"),
        ({"dilate": -1}, "dilate=-1; 0 or more"),
    ],
)
def test_impossible_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        NegativePromptOptions(**options)
