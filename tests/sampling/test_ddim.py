"""Sampling with guidance against the baseline, and what guidance asks."""

from dataclasses import asdict

import pytest
import torch

from baselines.null_text import guided_step, reconstruct
from baselines.schedule import make_schedule
from pivotal.attention_routes import AttentionRoutes
from pivotal.control import NoEdit
from pivotal.driver import drive
from pivotal.sampling.ddim import sample
from pivotal.sampling.guidance import guided_noise
from pivotal.schedule import NoiseLevels, ScheduleConfig

STEPS = 4


class Halving:
    """A control that can be told apart: it halves the latents after one step."""

    def __init__(self, step):
        self.step, self.calls = step, []

    def routes(self, step):
        self.calls.append(("routes", step))

    def after_step(self, step, latents, word_maps):
        self.calls.append(("after", step))
        return latents / 2 if step == self.step else latents


def config_of(kind):
    return ScheduleConfig(steps_offset=1, prediction_type=kind)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_guided_sampling_is_the_baselines(torch_denoiser, plain_unet, latents, prompts, kind):
    config = config_of(kind)
    noise, prompt, null = latents(), prompts(seed=1), prompts(seed=2)
    ours = drive(
        sample(
            NoiseLevels(config).schedule(STEPS), noise, prompt, lambda step: null, 3.0, NoEdit()
        ),
        torch_denoiser(kind),
    )
    with torch.no_grad():
        theirs = reconstruct(
            plain_unet(),
            make_schedule(asdict(config), STEPS),
            noise,
            prompt.hidden_states,
            null.hidden_states,
            3.0,
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_each_step_has_its_own_null(torch_denoiser, plain_unet, levels, latents, prompts):
    noise, prompt = latents(), prompts(seed=1)
    nulls = [prompts(seed=10 + step) for step in range(STEPS)]
    ours = drive(
        sample(levels.schedule(STEPS), noise, prompt, nulls.__getitem__, 3.0, NoEdit()),
        torch_denoiser(),
    )
    theirs = reconstruct(
        plain_unet(),
        make_schedule(asdict(levels.config), STEPS),
        noise,
        prompt.hidden_states,
        [null.hidden_states for null in nulls],
        3.0,
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_at_guidance_one_the_null_is_not_asked(torch_denoiser, levels, latents, prompts):
    denoiser = torch_denoiser()
    results = []
    for seed in (2, 3):
        null = prompts(2, seed=seed)
        results.append(
            drive(
                sample(
                    levels.schedule(STEPS),
                    latents(2),
                    prompts(2),
                    lambda _, n=null: n,
                    1.0,
                    NoEdit(),
                ),
                denoiser,
            )
        )
    assert torch.equal(*results)
    assert denoiser.rows_forward == 2 * STEPS * 2


def test_a_control_is_met_before_and_after_each_step(
    torch_denoiser, plain_unet, levels, latents, prompts
):
    schedule, control = levels.schedule(3), Halving(step=1)
    noise, prompt, null = latents(), prompts(seed=1), prompts(seed=2)
    ours = drive(sample(schedule, noise, prompt, lambda step: null, 2.0, control), torch_denoiser())
    assert control.calls == [(when, step) for step in range(3) for when in ("routes", "after")]
    unet, theirs = plain_unet(), noise
    for step in range(3):
        theirs = guided_step(
            unet,
            make_schedule(asdict(levels.config), 3),
            step,
            theirs,
            null.hidden_states,
            prompt.hidden_states,
            2.0,
        )
        theirs = theirs / 2 if step == 1 else theirs
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_routes_of_half_the_rows_act_on_the_conditional_ones(
    torch_denoiser, recording, swap_routes, levels, latents, prompts, scale
):
    inner = torch_denoiser()
    denoiser = recording(inner)
    level = levels.schedule(4).levels[3]
    cond, null = prompts(2, seed=1), prompts(2, seed=2)
    swap = swap_routes(inner.unet)
    whole = AttentionRoutes.cat([swap.identity_like(2), swap])

    def ask(routes):
        return drive(guided_noise(latents(2), level, cond, null, scale, routes), denoiser)

    half, full, plain = ask(swap), ask(whole), ask(None)
    torch.testing.assert_close(half.eps, full.eps, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(half.word_maps, full.word_maps, rtol=1e-10, atol=1e-10)
    assert half.word_maps.shape[0] == 2
    torch.testing.assert_close(half.eps[0], plain.eps[0], rtol=1e-10, atol=1e-10)
    assert (half.eps[1] - plain.eps[1]).abs().max() > 1e-2
    assert plain.word_maps is None
    assert denoiser.sizes == ([4, 4, 4] if scale != 1 else [2, 4, 2])
