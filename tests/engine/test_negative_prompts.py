"""A negative prompt stands in the empty prompt's place, in every method that is guided from it."""

import numpy as np
import pytest
import torch

import pivotal
from pivotal.inversion.registry import METHODS
from pivotal.inversion_file import read_inversion, write_inversion
from pivotal.records import edit_record, reconstruction_record

PROMPT, NEGATIVE = "a red circle on a gray background", "a blue square"
FEWER = {
    "null-text": {"inner_steps": 1},
    "null-text-line-search": {},
    "null-text-ablation": {"iterations": 1},
    "edit-friendly": {"skip": 0.0},
    "finite-difference": {"refine_skip": 0.0, "refine_iterations": 1},
    "newton-raphson": {"iterations": 1},
    "renoise": {"regularisation_steps": 1},
}


@pytest.fixture(scope="module")
def invert(engine, picture):
    def make(method="ddim", negative=NEGATIVE, steps=2, **options):
        return engine.invert(
            picture, PROMPT, method=method, num_inference_steps=steps, guidance_scale=3.0,
            negative_prompt=negative, options=options,
        )  # fmt: skip

    return make


QUICK = ("ddim", "direct", "edit-friendly")
GUIDED = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name, each in METHODS.items()
    if each.uses_null
]


@pytest.mark.parametrize("name", GUIDED)
def test_every_guided_method_edits_under_it(engine, invert, name):
    under, plain = (
        engine.edit(
            invert(name, negative, **FEWER.get(name, {})), "a red square on a gray background"
        )
        for negative in (NEGATIVE, "")
    )
    assert not torch.equal(under.latents[1], plain.latents[1])


def test_null_texts_fit_starts_from_it(engine, invert):
    unfitted = invert("null-text", inner_steps=0)
    (own,) = engine.encode(NEGATIVE).hidden_states
    embeddings = unfitted.inverted.stored["null_embeddings"][0]
    torch.testing.assert_close(embeddings, own.expand_as(embeddings).cpu())


def test_another_one_at_the_edit_is_as_if_inverted_with_it(engine, invert):
    target = "a red square on a gray background"
    given = engine.edit(invert(negative=""), target, negative_prompt=NEGATIVE)
    assert torch.equal(given.latents, engine.edit(invert(), target).latents)


def test_the_records_of_edits_and_reconstructions_name_the_one_that_was_used(engine, invert):
    plain = invert(negative="")
    found = engine.reconstruct(plain, negative_prompt=NEGATIVE)
    assert reconstruction_record(plain, found)["negative_prompt"] == NEGATIVE
    edited = engine.edit(plain, "a red square on a gray background", negative_prompt=NEGATIVE)
    assert edit_record(plain, edited, 0, {})["negative_prompt"] == NEGATIVE


def test_style_leads_away_from_the_inversions_own_unless_another_is_named(engine, invert):
    own, plain = invert(), invert(negative="")
    given = engine.style(plain, "a red square", negative_prompt=NEGATIVE)
    kept = engine.style(own, "a red square")
    assert torch.equal(kept.latents, given.latents)
    assert kept.negative_prompt == NEGATIVE
    none = engine.style(own, "a red square", negative_prompt="")
    assert not torch.equal(none.latents, kept.latents)
    assert engine.style(own, "a red square", guidance_scale=1).negative_prompt == ""


def test_a_file_keeps_it(invert, tmp_path):
    write_inversion(invert(), tmp_path / "a.safetensors")
    assert read_inversion(tmp_path / "a.safetensors").negative_prompt == NEGATIVE


def test_the_cache_tells_negative_prompts_apart(picture, tmp_path):
    engine = pivotal.Engine.load("shapes", cache=pivotal.InversionCache(tmp_path))

    def cached(negative):
        found = engine.invert(
            picture, PROMPT, method="ddim", num_inference_steps=1, negative_prompt=negative
        )
        return found.negative_prompt, found.report["cached"]

    assert [cached("blue"), cached("green"), cached("blue")] == [
        ("blue", False), ("green", False), ("blue", True),
    ]  # fmt: skip


def test_what_would_do_nothing_or_break_a_fit_is_refused(engine, invert, picture):
    with pytest.raises(ValueError, match="means nothing to negative-prompt"):
        invert("negative-prompt")
    with pytest.raises(ValueError, match="does nothing at guidance_scale=1"):
        engine.invert(picture, PROMPT, method="ddim", guidance_scale=1.0, negative_prompt="blue")
    fitted = invert("null-text", inner_steps=0)
    with pytest.raises(ValueError, match="was fitted for 'a blue square'"):
        engine.edit(fitted, "a red square on a gray background", negative_prompt="green")
    with pytest.raises(ValueError, match="negative_prompt is of type int; a text"):
        engine.reconstruct(fitted, negative_prompt=3)
    assert np.isfinite(engine.reconstruct(fitted, negative_prompt=NEGATIVE).psnr)


def test_pictures_from_text_take_none_where_it_would_do_nothing(engine):
    for given, said in (("blue", "'blue'"), (engine.encode("blue"), "an embedding")):
        with pytest.raises(ValueError, match=f"{said} does nothing at guidance_scale=1"):
            engine.generate(
                PROMPT, num_inference_steps=1, guidance_scale=1.0, negative_prompt=given
            )
    for given in (None, ["blue"]):
        with pytest.raises(ValueError, match="one text or embedding for all"):
            engine.generate(PROMPT, num_inference_steps=1, negative_prompt=given)
