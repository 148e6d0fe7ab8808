from dataclasses import replace

import pytest
import torch

from pivotal.query import Denoise, LossGradient, NoiseGradient, Progress
from pivotal.sampling.steps import eps_and_x0
from pivotal.schedule import NoiseLevel

TYPES = ("epsilon", "v_prediction", "sample")
LEVELS = (NoiseLevel(0.9, 120.0), NoiseLevel(0.05, 871.5))


@pytest.fixture
def query(latents, prompts):
    """Two rows at two noise levels, a Denoise."""

    def make(*, dtype=torch.float64, sdxl=False):
        return Denoise(
            latents(2, dtype=dtype),
            torch.tensor([level.timestep for level in LEVELS]),
            torch.tensor([level.alpha_bar for level in LEVELS], dtype=torch.float64),
            prompts(2, dtype=dtype, sdxl=sdxl),
        )

    return make


@pytest.fixture
def gradient_query(query, latents):
    def make(wrt="hidden_states", *, dtype=torch.float64, sdxl=False):
        asked = query(dtype=dtype, sdxl=sdxl)
        return NoiseGradient(
            asked.latents,
            asked.timesteps,
            asked.alpha_bars,
            asked.conditioning,
            scale=torch.tensor([1.5, -0.3], dtype=dtype),
            offset=latents(2, seed=3, dtype=dtype),
            wrt=wrt,
        )

    return make


def called(unet, latents, timesteps, conditioning):
    """diffusers' own UNet, with its own attention."""
    added = None
    if conditioning.pooled is not None:
        added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids}
    return unet(latents, timesteps, conditioning.hidden_states, added_cond_kwargs=added).sample


def decode(latents):
    """A small differentiable decoder, to [0, 1]."""
    return torch.sigmoid(latents[:, :3] * 0.7 + latents[:, 3:])


def brightness(images):
    return (images - 0.9).square().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("sdxl", [False, True])
@pytest.mark.parametrize("kind", TYPES)
def test_denoise_is_what_diffusers_unet_predicts(torch_denoiser, plain_unet, query, kind, sdxl):
    asked = query(sdxl=sdxl)
    noise = torch_denoiser(kind, sdxl=sdxl).answer(asked)
    with torch.no_grad():
        prediction = called(
            plain_unet(sdxl=sdxl), asked.latents, asked.timesteps, asked.conditioning
        )
    expected = eps_and_x0(prediction, asked.latents, asked.alpha_bars, kind)
    torch.testing.assert_close((noise.eps, noise.x0), expected, rtol=1e-9, atol=1e-9)
    assert noise.word_maps is None
    alpha_bars = asked.alpha_bars[:, None, None, None]
    whole = alpha_bars.sqrt() * noise.x0 + (1 - alpha_bars).sqrt() * noise.eps
    torch.testing.assert_close(whole, asked.latents, rtol=1e-9, atol=1e-9)


def test_the_prompt_matters(torch_denoiser, query, prompts):
    asked, denoiser = query(), torch_denoiser()
    other = replace(asked, conditioning=prompts(2, seed=5))
    assert (denoiser.answer(asked).eps - denoiser.answer(other).eps).abs().max() > 1e-2


def written_out(unet, asked, kind):
    """Loss per row and its gradient, by autograd through diffusers' UNet."""
    inputs = {
        "hidden_states": asked.conditioning.hidden_states,
        "pooled": asked.conditioning.pooled,
        "latents": asked.latents,
    }
    variable = inputs[asked.wrt].clone().requires_grad_()
    inputs[asked.wrt] = variable
    conditioning = replace(
        asked.conditioning, hidden_states=inputs["hidden_states"], pooled=inputs["pooled"]
    )
    latents = inputs["latents"]
    prediction = called(unet, latents, asked.timesteps, conditioning)
    signal, spread = (
        part.sqrt()[:, None, None, None] for part in (asked.alpha_bars, 1 - asked.alpha_bars)
    )
    if kind == "epsilon":
        eps = prediction
    elif kind == "v_prediction":
        eps = signal * prediction + spread * latents
    else:
        eps = (latents - signal * prediction) / spread
    loss = (asked.scale[:, None, None, None] * eps + asked.offset).square().mean(dim=(1, 2, 3))
    loss.sum().backward()
    return eps.detach(), loss.detach(), variable.grad


@pytest.mark.parametrize(
    ("wrt", "kind"),
    [
        *[(wrt, "epsilon") for wrt in ("hidden_states", "pooled", "latents")],
        ("latents", "v_prediction"),
        ("hidden_states", "v_prediction"),
        ("latents", "sample"),
    ],
)
def test_noise_gradient_is_autograd_written_out(
    torch_denoiser, plain_unet, gradient_query, wrt, kind
):
    asked = gradient_query(wrt, sdxl=True)
    answer = torch_denoiser(kind, sdxl=True).answer(asked)
    eps, loss, gradient = written_out(plain_unet(sdxl=True), asked, kind)
    torch.testing.assert_close(answer.eps, eps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(answer.loss, loss, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(answer.gradient, gradient, rtol=1e-7, atol=1e-10)
    assert not answer.gradient.requires_grad
    assert not answer.eps.requires_grad


@pytest.mark.parametrize("wrt", ["hidden_states", "pooled", "latents"])
def test_noise_gradient_is_what_finite_differences_say(torch_denoiser, gradient_query, wrt):
    asked, denoiser = gradient_query(wrt, sdxl=True), torch_denoiser(sdxl=True)
    gradient = denoiser.answer(asked).gradient
    generator = torch.Generator().manual_seed(7)
    direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)

    def loss_at(h):
        if wrt == "latents":
            moved = replace(asked, latents=asked.latents + h * direction)
        else:
            there = getattr(asked.conditioning, wrt) + h * direction
            moved = replace(asked, conditioning=replace(asked.conditioning, **{wrt: there}))
        return denoiser.answer(moved).loss

    slope = (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5
    expected = (gradient * direction).flatten(1).sum(dim=1)
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-6)


def test_a_batch_of_two_is_two_of_one(torch_denoiser, query, gradient_query):
    denoiser = torch_denoiser(sdxl=True, decode=decode)
    denoise = query(sdxl=True)
    image = LossGradient(
        denoise.latents,
        denoise.timesteps,
        denoise.alpha_bars,
        denoise.conditioning,
        brightness,
        through_unet=True,
    )
    gradients = [gradient_query(wrt, sdxl=True) for wrt in ("hidden_states", "pooled", "latents")]
    for asked in (denoise, image, *gradients):
        both = denoiser.answer(asked)
        for row in (0, 1):
            one = torch.tensor([row])
            alone, share = denoiser.answer(asked.select(one)), both.select(one)
            for name in type(both).__dataclass_fields__:
                if getattr(both, name) is not None:
                    torch.testing.assert_close(
                        getattr(alone, name), getattr(share, name), rtol=1e-8, atol=1e-10
                    )


@pytest.mark.parametrize("through_unet", [False, True])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_loss_gradient_is_autograd_through_the_decoder(
    torch_denoiser, plain_unet, query, kind, through_unet
):
    asked = query()
    answer = torch_denoiser(kind, decode=decode).answer(
        LossGradient(
            asked.latents,
            asked.timesteps,
            asked.alpha_bars,
            asked.conditioning,
            brightness,
            through_unet,
        )
    )
    latents = asked.latents.clone().requires_grad_()
    prediction = called(plain_unet(), latents, asked.timesteps, asked.conditioning)
    eps, x0 = eps_and_x0(prediction, latents, asked.alpha_bars, kind)
    if not through_unet:  # the noise stays as it is, in sigma space: x0 = x - sigma eps
        at = asked.alpha_bars[:, None, None, None]
        x0 = latents / at.sqrt() - ((1 - at) / at).sqrt() * eps.detach()
    loss = brightness(decode(x0))
    loss.sum().backward()
    torch.testing.assert_close(answer.eps, eps.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(answer.x0, x0.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(answer.loss, loss.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(answer.gradient, latents.grad, rtol=1e-7, atol=1e-11)


def test_a_loss_that_is_not_per_row_is_refused(torch_denoiser, query):
    asked = query()
    rest = (asked.latents, asked.timesteps, asked.alpha_bars, asked.conditioning)
    with pytest.raises(ValueError, match=r"one value per row, shape \[2\]; got \[\]"):
        torch_denoiser(decode=decode).answer(LossGradient(*rest, lambda images: images.mean()))


def test_what_it_can_answer_depends_on_the_decoder(torch_denoiser, query):
    plain, decoding = torch_denoiser(), torch_denoiser(decode=decode)
    assert plain.answers == {Denoise, NoiseGradient}
    assert decoding.answers == {Denoise, NoiseGradient, LossGradient}
    asked = query()
    rest = (asked.latents, asked.timesteps, asked.alpha_bars, asked.conditioning)
    with pytest.raises(TypeError, match="needs a denoiser with a decoder"):
        plain.answer(LossGradient(*rest, brightness))
    with pytest.raises(TypeError, match="Progress is not a query"):
        plain.answer(Progress("sample", 0, 1))


def test_rows_are_counted_forward_and_backward(torch_denoiser, query, gradient_query):
    denoiser = torch_denoiser(decode=decode)
    asked = query()
    rest = (asked.latents, asked.timesteps, asked.alpha_bars, asked.conditioning)
    counted = []
    for each in (
        asked,
        gradient_query(),
        LossGradient(*rest, brightness),
        LossGradient(*rest, brightness, through_unet=True),
    ):
        denoiser.answer(each)
        counted.append((denoiser.rows_forward, denoiser.rows_backward))
    assert counted == [(2, 0), (4, 2), (6, 2), (8, 4)]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("network", "asked"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float64),
    ],
)
def test_answers_are_float32_or_the_latents_float64(
    torch_denoiser, query, gradient_query, kind, network, asked
):
    denoiser = torch_denoiser(kind, dtype=network)
    assert denoiser.dtype == network
    noise = denoiser.answer(query(dtype=asked))
    assert noise.eps.dtype == noise.x0.dtype == asked
    gradient = denoiser.answer(gradient_query(dtype=asked))
    assert gradient.eps.dtype == gradient.loss.dtype == gradient.gradient.dtype == asked
    assert gradient.gradient.isfinite().all()


def test_a_low_precision_network_is_near_the_exact_one(torch_denoiser, query):
    exact = torch_denoiser().answer(query())
    low = torch_denoiser(dtype=torch.bfloat16).answer(query(dtype=torch.float32))
    error = (low.eps.double() - exact.eps).square().mean().sqrt()
    assert error < 0.25 * exact.eps.square().mean().sqrt()
    # x0 is split from float32 latents, not from rounded ones
    alpha_bars = query().alpha_bars[:, None, None, None]
    whole = alpha_bars.sqrt() * low.x0 + (1 - alpha_bars).sqrt() * low.eps
    torch.testing.assert_close(whole, query().latents, rtol=1e-5, atol=1e-5)


def test_a_small_residual_has_a_gradient_in_float16(torch_denoiser, query, gradient_query):
    def gradient(network, dtype):
        """At a residual of 1e-4, whatever eps the network says."""
        denoiser, asked = torch_denoiser(dtype=network), gradient_query(dtype=dtype)
        scale = torch.full_like(asked.scale, 0.05)
        offset = 1e-4 * asked.offset - 0.05 * denoiser.answer(query(dtype=dtype)).eps
        return denoiser.answer(replace(asked, scale=scale, offset=offset)).gradient.double()

    exact = gradient(torch.float64, torch.float64)
    error = (gradient(torch.float16, torch.float32) - exact).square().mean().sqrt()
    assert error < 0.25 * exact.square().mean().sqrt()


def test_no_gradient_is_kept_on_weights_or_inputs(torch_denoiser, gradient_query):
    denoiser, asked = torch_denoiser(), gradient_query()
    denoiser.answer(asked)
    assert all(not p.requires_grad and p.grad is None for p in denoiser.unet.parameters())
    assert not asked.conditioning.hidden_states.requires_grad
    assert not denoiser.unet.training


def test_word_maps_have_the_routed_rows_and_columns(torch_denoiser, query, swap_routes):
    denoiser = torch_denoiser()
    asked = replace(query(), routes=swap_routes(denoiser.unet, columns=3))
    noise = denoiser.answer(asked)
    assert noise.word_maps.shape == (2, 3, 4, 4)
    assert noise.word_maps.min() >= 0
    assert noise.word_maps.max() <= 1
    assert noise.word_maps.max() > 0
