import pytest
import torch

from pivotal.query import Noise
from pivotal.sampling.steps import ddim_coefficients, ddim_step, eps_and_x0, guide
from pivotal.schedule import NoiseLevel

HIGH, LOW = NoiseLevel(0.12, 800), NoiseLevel(0.87, 100)
TYPES = ("epsilon", "v_prediction", "sample")


def noise_of(latents, eps, level):
    return Noise(eps, (latents - (1 - level.alpha_bar) ** 0.5 * eps) / level.alpha_bar**0.5)


def predicted(eps, x0, alpha_bar, kind):
    signal, spread = (
        part[:, None, None, None] for part in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
    )
    return {"epsilon": eps, "sample": x0, "v_prediction": signal * eps - spread * x0}[kind]


def test_up_with_the_same_eps_undoes_down(latents):
    z, eps = latents(2), latents(2, seed=1)
    down = ddim_step(noise_of(z, eps, HIGH), LOW)
    assert (down - z).abs().max() > 0.1
    up = ddim_step(noise_of(down, eps, LOW), HIGH)
    torch.testing.assert_close(up, z, rtol=1e-12, atol=1e-12)


def test_a_step_to_its_own_level_stands_still(latents):
    z = latents(2)
    still = ddim_step(noise_of(z, latents(2, seed=1), HIGH), HIGH)
    torch.testing.assert_close(still, z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("start", "end"), [(HIGH, LOW), (LOW, HIGH), (HIGH, NoiseLevel(1.0, 0))])
def test_coefficients_agree_with_the_step(latents, start, end):
    z, eps = latents(2), latents(2, seed=1)
    a, b = ddim_coefficients(start, end)
    expected = ddim_step(noise_of(z, eps, start), end)
    torch.testing.assert_close(a * z + b * eps, expected, rtol=1e-12, atol=1e-12)


def test_no_coefficients_at_zero_terminal_snr():
    with pytest.raises(ValueError, match="zero terminal SNR"):
        ddim_coefficients(NoiseLevel(0.0, 999), LOW)


@pytest.mark.parametrize("kind", TYPES)
def test_eps_and_x0_come_back_from_every_kind_of_prediction(latents, kind):
    eps, x0 = latents(3), latents(3, seed=1)
    alpha_bar = torch.tensor([0.999, 0.5, 0.004], dtype=torch.float64)
    signal, spread = (
        part[:, None, None, None] for part in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
    )
    z = signal * x0 + spread * eps
    prediction = predicted(eps, x0, alpha_bar, kind)
    found = eps_and_x0(prediction, z, alpha_bar, kind)
    torch.testing.assert_close(found, (eps, x0), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_at_zero_terminal_snr_the_latents_are_the_noise(latents, kind):
    eps, x0 = latents(1), latents(1, seed=1)
    alpha_bar = torch.zeros(1, dtype=torch.float64)
    prediction = predicted(eps, x0, alpha_bar, kind)
    torch.testing.assert_close(eps_and_x0(prediction, eps, alpha_bar, kind), (eps, x0))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eps_and_x0_have_the_latents_dtype(latents, kind, dtype):
    prediction = latents(2).to(torch.bfloat16)
    alpha_bar = torch.tensor([0.3, 0.6], dtype=torch.float64)
    eps, x0 = eps_and_x0(prediction, latents(2, seed=1, dtype=dtype), alpha_bar, kind)
    assert eps.dtype == x0.dtype == dtype


def test_guidance_one_is_the_prompt_and_zero_is_none(latents):
    uncond = Noise(latents(seed=0), latents(seed=1))
    cond = Noise(latents(seed=2), latents(seed=3), word_maps=latents(seed=4))
    for scale, expected in ((0.0, uncond), (1.0, cond)):
        guided = guide(uncond, cond, scale)
        torch.testing.assert_close(guided.eps, expected.eps, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(guided.x0, expected.x0, rtol=1e-14, atol=1e-14)
        assert guided.word_maps is cond.word_maps
    beyond = guide(uncond, cond, 7.5)
    torch.testing.assert_close(beyond.eps, uncond.eps + 7.5 * (cond.eps - uncond.eps))


def test_guided_eps_and_x0_belong_to_the_same_latents(latents):
    z = latents(1)
    uncond, cond = (noise_of(z, latents(1, seed=seed), HIGH) for seed in (1, 2))
    guided = guide(uncond, cond, 7.5)
    expected = noise_of(z, guided.eps, HIGH)
    torch.testing.assert_close(guided.x0, expected.x0, rtol=1e-11, atol=1e-11)
