from functools import partial

import pytest
import torch

from pivotal.control import NoEdit
from pivotal.driver import drive
from pivotal.query import LossGradient
from pivotal.sampling import ddim, euler
from pivotal.sampling.draws import seeded
from pivotal.sampling.guidance import both_noises
from pivotal.sampling.loss_guidance import LossGuidance
from pivotal.sampling.losses import channel_level, preservation, similarity
from pivotal.sampling.samplers import SAMPLERS
from pivotal.schedule import NoiseLevels, ScheduleConfig

STEPS, SCALE = 4, 2.0


def gentle(steps=STEPS):
    return NoiseLevels(ScheduleConfig(beta_end=0.003, steps_offset=1)).schedule(steps)


def decode(latents):
    """Four latent channels to three colours, each latent two pixels wide; smooth and in [0, 1]."""
    mixed = torch.stack([latents[:, 0] + latents[:, 1], latents[:, 2], latents[:, 3]], dim=1)
    return torch.sigmoid(mixed).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


@pytest.fixture
def run(torch_denoiser, latents, prompts):
    def make(guidance=None, *, rows=1, denoiser=None, sampler=ddim.sample, scale=SCALE):
        cond, null = prompts(rows, seed=1), prompts(rows, seed=2)
        algorithm = sampler(
            gentle(), latents(rows), cond, lambda step: null, scale, NoEdit(), loss=guidance
        )
        return drive(algorithm, denoiser or torch_denoiser(decode=decode))

    return make


def transcription(unet, schedule, z, cond, null, guidance):
    """The course's loop in sigma space: autograd through the decoder and the x0 formula alone."""
    levels = list(reversed(schedule.levels))
    x = z * (1 + levels[0].sigma ** 2) ** 0.5
    for i, level in enumerate(levels[:-1]):
        sigma = level.sigma

        def predict(prompt, at=x, level=level):
            scaled = at / (1 + level.sigma**2) ** 0.5
            hidden = prompt.hidden_states
            return unet(scaled, level.timestep, encoder_hidden_states=hidden).sample

        with torch.no_grad():
            eps = predict(null) + SCALE * (predict(cond) - predict(null))
        if i > 0 and i % guidance.periodicity == 0:
            x = x.detach().requires_grad_()
            x0 = x - sigma * eps
            (gradient,) = torch.autograd.grad((guidance.loss(decode(x0)) * guidance.scale).sum(), x)
            x = x.detach() - sigma**2 * gradient
        x = x + (levels[i + 1].sigma - sigma) * eps
    return x / (1 + levels[-1].sigma ** 2) ** 0.5


def test_it_is_the_courses_loop(run, plain_unet, latents, prompts):
    guidance = LossGuidance(channel_level("blue"), scale=75.0, periodicity=2)
    theirs = transcription(
        plain_unet(), gentle(), latents(), prompts(seed=1), prompts(seed=2), guidance
    )
    torch.testing.assert_close(run(guidance), theirs, rtol=1e-6, atol=1e-6)


def test_no_factor_is_plain_ddim(run):
    guidance = LossGuidance(channel_level("blue"), scale=0.0, periodicity=1)
    torch.testing.assert_close(run(guidance), run(), rtol=1e-9, atol=1e-9)


def test_the_loss_falls(run):
    loss = channel_level("blue")
    guided = run(LossGuidance(loss, scale=200.0, periodicity=1))
    assert loss(decode(guided)).item() < 0.9 * loss(decode(run())).item()


def test_it_acts_at_every_so_many_steps_and_never_the_first(run, torch_denoiser, recording):
    denoiser = recording(torch_denoiser(decode=decode))
    run(LossGuidance(channel_level("red"), periodicity=2), denoiser=denoiser)
    kinds = [isinstance(query, LossGradient) for query in denoiser.batches]
    assert kinds == [False, False, False, True, False]


def test_at_guidance_1_no_unconditional_row_is_asked_for(run, torch_denoiser, recording):
    guidance = LossGuidance(channel_level("blue", 0.9), periodicity=1)
    denoiser = recording(torch_denoiser(decode=decode))
    found = run(guidance, denoiser=denoiser, scale=1.0)
    assert [len(query.latents) for query in denoiser.batches] == [1] * (2 * STEPS - 1)
    nearly = run(guidance, scale=1.0 + 1e-9)
    torch.testing.assert_close(found, nearly, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["euler", "lms", "dpm++", "ddpm", "euler-ancestral"])
def test_it_guides_every_sampler(run, name):
    loss, sampler = channel_level("blue"), SAMPLERS[name]

    def sampled(guidance):
        fresh = {"draw": seeded([1])} if sampler.draws else {}
        return run(guidance, sampler=partial(sampler.sample, **fresh))

    guided = sampled(LossGuidance(loss, scale=200.0, periodicity=1))
    assert loss(decode(guided)).item() < 0.9 * loss(decode(sampled(None))).item()


def test_with_eulers_step_it_is_the_courses_loop_too(run):
    guidance = LossGuidance(channel_level("blue"), periodicity=2)
    ours, theirs = run(guidance, sampler=euler.sample), run(guidance)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_at_zero_terminal_snr_it_acts_from_the_second_step_on(latents, prompts, torch_denoiser):
    config = ScheduleConfig(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    guidance = LossGuidance(channel_level("blue"), periodicity=1)
    found = drive(
        ddim.sample(
            NoiseLevels(config).schedule(3), latents(), prompts(), lambda step: prompts(seed=2),
            SCALE, NoEdit(), loss=guidance,
        ),
        torch_denoiser("v_prediction", decode=decode),
    )  # fmt: skip
    assert found.isfinite().all()


def test_through_the_unet_the_move_is_another(run):
    loss = channel_level("blue")
    plain = run(LossGuidance(loss, periodicity=1))
    through = run(LossGuidance(loss, periodicity=1, through_unet=True))
    assert (plain - through).abs().max() > 1e-4


def test_two_rows_are_each_alone(run, torch_denoiser, latents, prompts):
    guidance, denoiser = (
        LossGuidance(channel_level("blue"), periodicity=1),
        torch_denoiser(decode=decode),
    )
    both = run(guidance, rows=2)
    one = torch.tensor([1])
    null = prompts(2, seed=2).select(one)
    alone = drive(
        ddim.sample(
            gentle(), latents(2)[one], prompts(2, seed=1).select(one), lambda step: null, SCALE,
            NoEdit(), loss=guidance,
        ),
        denoiser,
    )  # fmt: skip
    torch.testing.assert_close(both[one], alone, rtol=1e-6, atol=1e-6)


def test_losses_are_what_they_say():
    pictures = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    wanted = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(1))
    kept = torch.zeros(6, 5, dtype=torch.bool)
    kept[1:3, 2:4] = True
    for row in range(2):
        apart = pictures[row] - wanted
        expected = {
            channel_level("blue", 0.9): (pictures[row, 2] - 0.9).abs().mean(),
            similarity(wanted): apart.square().mean(),
            preservation(wanted, kept): apart[:, 1:3, 2:4].square().mean(),
        }
        for loss, value in expected.items():
            found = loss(pictures)
            assert found.shape == (2,)
            torch.testing.assert_close(found[row], value)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: channel_level("cyan"), "channel='cyan' is unknown; accepted are red, green, blue"),
        (
            lambda: preservation(torch.zeros(3, 2, 2), torch.zeros(2, 2, dtype=torch.bool)),
            "the mask keeps no pixel",
        ),
        (lambda: LossGuidance(similarity(torch.zeros(1)), periodicity=0), "periodicity=0; 1 or"),
        (lambda: LossGuidance(similarity(torch.zeros(1)), scale=float("nan")), "scale=nan; a fin"),
        (lambda: LossGuidance("blue"), "loss='blue'; a function of pictures"),
        (
            lambda: similarity(torch.zeros(3, 1, 1))(torch.zeros(1, 3, 4, 5)),
            r"a picture or mask of \[1, 1\] \(height, width\); \[4, 5\] are made",
        ),
    ],
)
def test_impossible_wishes_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_the_gradient_is_the_same_whatever_the_network_predicts(torch_denoiser, latents, prompts):
    """eps stays and x0 moves by 1 / sqrt(alpha_bar): a move of the latents moves the picture so."""
    loss, z, alpha_bars = channel_level("blue"), latents(2), torch.tensor([0.01, 0.9]).double()
    query = LossGradient(z, torch.tensor([800.0, 90.0]), alpha_bars, prompts(2), loss)
    signal, spread = (root.sqrt()[:, None, None, None] for root in (alpha_bars, 1 - alpha_bars))
    for kind in ("epsilon", "v_prediction", "sample"):
        answer = torch_denoiser(kind, decode=decode).answer(query)
        moved = z.clone().requires_grad_()
        x0 = (moved - spread * answer.eps) / signal
        (expected,) = torch.autograd.grad(loss(decode(x0)).sum(), moved)
        torch.testing.assert_close(answer.gradient, expected)
        torch.testing.assert_close(answer.x0, x0.detach())


def test_under_routes_the_loss_sees_the_guided_picture(
    torch_denoiser, latents, prompts, swap_routes
):
    """The last picture that is decoded is of the routed and guided prediction."""
    seen = []

    def loss(pictures):
        seen.append(pictures.detach())
        return pictures.mean(dim=(1, 2, 3))

    class Swap(NoEdit):
        def routes(self, step):
            return routes

    denoiser, cond, null = torch_denoiser(decode=decode), prompts(2, seed=1), prompts(2, seed=2)
    routes = swap_routes(denoiser.unet)
    schedule = gentle(2)
    guidance = LossGuidance(loss, scale=0.0, periodicity=1)
    end = drive(
        ddim.sample(schedule, latents(2), cond, lambda step: null, SCALE, Swap(), loss=guidance),
        denoiser,
    )
    high = schedule.levels[1]
    start = drive(
        ddim.sample(schedule, latents(2), cond, lambda step: null, SCALE, Swap()), denoiser
    )
    torch.testing.assert_close(end, start)
    first = {}

    class Keep(Swap):
        def after_step(self, step, latents, word_maps):
            first.setdefault(step, latents)
            return latents

    drive(ddim.sample(schedule, latents(2), cond, lambda step: null, SCALE, Keep()), denoiser)
    uncond, own = drive(both_noises(first[0], high, cond, null, routes), denoiser)
    expected = decode(uncond.x0 + SCALE * (own.x0 - uncond.x0))
    torch.testing.assert_close(seen[-1], expected)
