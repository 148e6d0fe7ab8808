"""A batch equals its items: nearly always nearly, and bit for bit where that is asked for."""

import numpy as np
import pytest
import torch

import pivotal

PROMPT = "a red circle on a gray background"
TARGETS = [f"a {colour} circle on a gray background" for colour in ("blue", "green")]
QUICK = {"method": "null-text", "num_inference_steps": 2, "options": {"inner_steps": 2}}


@pytest.fixture(scope="module")
def exact(engine):
    return pivotal.Engine(engine.model, batch_invariant=True)


def frames(picture, count=2):
    """A picture that moves by a pixel a frame."""
    return [np.roll(picture, shift, axis=1) for shift in range(count)]


def stored(inversion):
    return {"noise": inversion.inverted.noise, **inversion.inverted.stored}


def test_in_the_mode_a_batch_of_inversions_is_its_items_bit_for_bit(exact, picture):
    images = frames(picture)
    prompts = [PROMPT, TARGETS[0]]
    together = exact.invert_many(images, prompts, **QUICK)
    for image, prompt, inversion in zip(images, prompts, together, strict=True):
        alone = stored(exact.invert(image, prompt, **QUICK))
        assert all(torch.equal(alone[name], found) for name, found in stored(inversion).items())
    assert together[0].report["precision"]["batch_invariant"]


def test_in_the_mode_edits_are_the_same_in_any_company_bit_for_bit(exact, picture):
    inversion = exact.invert(picture, PROMPT, method="ddim", num_inference_steps=2)
    edited = exact.edit_many(inversion, TARGETS, blend="auto")
    for index, target in enumerate(TARGETS):
        alone = exact.edit(inversion, target, blend="auto")
        assert torch.equal(alone.latents[1], edited.latents[1 + index])
        assert np.array_equal(alone.pictures[0], edited.pictures[index])
    reconstructed = exact.reconstruct(inversion)
    submitted = [exact.submit(exact.edit, inversion, target, blend="auto") for target in TARGETS]
    submitted.append(exact.submit(exact.reconstruct, inversion))
    *edits, source = [each.result(timeout=120) for each in submitted]
    for index, found in enumerate(edits):
        assert torch.equal(found.latents[1], edited.latents[1 + index])
    assert np.array_equal(source.picture, reconstructed.picture)


def test_in_the_mode_generated_pictures_are_the_same_in_any_company(exact):
    together = exact.generate(TARGETS, num_inference_steps=2, seed=5)
    for index, target in enumerate(TARGETS):
        alone = exact.generate(target, num_inference_steps=2, seed=5 + index)
        assert torch.equal(alone.latents[0], together.latents[index])


def test_without_the_mode_a_batch_is_its_items_to_the_documented_tolerance(engine, picture):
    """As `Engine.invert_many` says: a thousandth of the noise's deviation."""
    images = frames(picture)
    together = engine.invert_many(images, PROMPT, **QUICK)
    for image, inversion in zip(images, together, strict=True):
        alone = engine.invert(image, PROMPT, **QUICK).inverted.noise
        assert (alone - inversion.inverted.noise).abs().max() <= 1e-3 * alone.std()


def test_frames_of_a_sequence_share_the_noise_that_a_method_draws(engine, picture):
    """x_t = sqrt(ab) x0 + sqrt(1 - ab) eps: the same eps in the noisiest latents of all frames."""
    drawn = []
    for inversion in engine.invert_many(
        frames(picture), PROMPT, method="edit-friendly", num_inference_steps=4,
        options={"skip": 0.0, "seed": 3},
    ):  # fmt: skip
        level = engine.model.levels.schedule(4).levels[-1]
        signal = level.alpha_bar**0.5 * inversion.latents
        drawn.append((inversion.inverted.noise - signal) / (1 - level.alpha_bar) ** 0.5)
    assert drawn[0].std() == pytest.approx(1, abs=0.2)
    torch.testing.assert_close(drawn[0], drawn[1], atol=1e-4, rtol=0)
