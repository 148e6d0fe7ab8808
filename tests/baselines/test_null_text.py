import pytest
import torch

from baselines.attention import explicit_copy
from baselines.null_text import ddim_inversion, null_text_inversion, reconstruct
from baselines.schedule import ddim_step, make_schedule, predict_eps

STEPS = 4


@pytest.fixture
def case(unet, config, noise, texts):
    """A latents, its prompt, and a null embedding near enough that guidance is not absurd."""
    prompt = texts[:1]
    return unet, make_schedule(config, STEPS), noise, prompt, prompt + 0.1 * texts[3:]


def error(result, latents):
    return (result - latents).square().mean().item()


def test_inversion_asks_at_the_clean_latents_with_the_destinations_timestep(case):
    unet, schedule, latents, prompt, _ = case
    pivots = ddim_inversion(unet, schedule, latents, prompt)
    assert len(pivots) == STEPS + 1
    assert pivots[0] is latents
    with torch.no_grad():
        eps = predict_eps(unet, schedule, STEPS - 1, latents, prompt)
    first = ddim_step(latents, eps, schedule.alpha_bar_prev[-1], schedule.alpha_bar[-1])
    torch.testing.assert_close(pivots[1], first)


def test_fitting_reduces_the_loss_and_the_reconstruction_error(case):
    _, _, latents, _, null = case
    fitted = null_text_inversion(*case, inner_steps=8, early_stop_epsilon=0.0)
    plain = null_text_inversion(*case, inner_steps=0)
    for i, losses in enumerate(fitted.losses):
        assert len(losses) == 8 or losses[-1] < i * 2e-5
        assert len(losses) == 1 or losses[-1] < losses[0]
    assert plain.losses == [[]] * STEPS
    assert all(torch.equal(kept, null) for kept in plain.nulls)
    assert error(fitted.latents, latents) < 0.5 * error(plain.latents, latents)


def test_nulls_replayed_from_the_last_pivot_give_the_reconstruction(case):
    unet, schedule, _, prompt, null = case
    fitted = null_text_inversion(*case, inner_steps=3)
    again = reconstruct(unet, schedule, fitted.pivots[-1], prompt, fitted.nulls)
    assert torch.equal(again, fitted.latents)
    unfitted = null_text_inversion(*case, inner_steps=0)
    again = reconstruct(unet, schedule, fitted.pivots[-1], prompt, null)
    assert torch.equal(again, unfitted.latents)


def test_explicit_maps_change_only_rounding(case):
    fused = null_text_inversion(*case, inner_steps=1)
    explicit = null_text_inversion(*case, inner_steps=1, explicit_maps=True)
    torch.testing.assert_close(explicit.latents, fused.latents, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(explicit.nulls, fused.nulls, rtol=1e-6, atol=1e-6)
    unet, *rest = case
    by_hand = null_text_inversion(explicit_copy(unet), *rest, inner_steps=1)
    assert torch.equal(by_hand.latents, explicit.latents)


def test_an_early_stop_comes_after_one_update(case):
    *_, null = case
    stopped = null_text_inversion(*case, inner_steps=8, early_stop_epsilon=1e9)
    one = null_text_inversion(*case, inner_steps=1)
    assert [len(losses) for losses in stopped.losses] == [1] * STEPS
    assert torch.equal(stopped.latents, one.latents)
    # Adam's first step moves an entry by the learning rate, where its gradient is not tiny
    for i, (before, after) in enumerate(zip([null, *one.nulls], one.nulls, strict=False)):
        moved = (after - before).abs().median()
        torch.testing.assert_close(moved.item(), 1e-2 * (1 - i / 100), rtol=1e-3, atol=0.0)


def test_weights_are_left_as_they_were(case):
    unet, *_ = case
    wanted = [p.requires_grad for p in unet.parameters()]
    null_text_inversion(*case, inner_steps=1)
    assert [p.requires_grad for p in unet.parameters()] == wanted
    assert all(p.grad is None for p in unet.parameters())


def test_a_batch_is_refused(case):
    unet, schedule, latents, prompt, null = case
    with pytest.raises(ValueError, match="one image"):
        null_text_inversion(unet, schedule, torch.cat([latents] * 2), prompt, null)
