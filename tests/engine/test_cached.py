"""The engine with a cache: nothing is inverted twice."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

import pivotal

PROMPT = "a red circle on a gray background"
STEPS = 3


@pytest.fixture
def cached(engine, tmp_path):
    """A fresh engine on the same model, with an empty cache."""
    cache = pivotal.InversionCache(tmp_path / "cache")
    return pivotal.Engine(engine.model, cache=cache)


def test_a_second_inversion_asks_the_network_nothing_and_edits_alike(cached, picture):
    options = {"inner_steps": 1}
    first = cached.invert(picture, PROMPT, num_inference_steps=STEPS, options=options)
    before = cached.denoiser.rows_forward
    again = cached.invert(picture, PROMPT, num_inference_steps=STEPS, options=options)
    assert cached.denoiser.rows_forward == before
    assert (first.report["cached"], again.report["cached"]) == (False, True)
    assert again.report["unet_rows"] == 0
    assert again.report["seconds"]["invert"] == 0
    assert again.report["first"]["unet_rows"] == first.report["unet_rows"]
    blue = "a blue circle on a gray background"
    assert torch.equal(cached.edit(again, blue).latents, cached.edit(first, blue).latents)


def test_an_engine_without_a_cache_keeps_nothing(engine, picture):
    for _ in range(2):
        inversion = engine.invert(picture, PROMPT, method="ddim", num_inference_steps=STEPS)
        assert inversion.report["cached"] is False


def test_a_prompt_steps_or_options_apart_are_inverted_anew(cached, picture):
    common = {"method": "ddim", "num_inference_steps": STEPS}
    cached.invert(picture, PROMPT, **common)
    others = [
        {"prompt": "a red circle"},
        {"num_inference_steps": STEPS + 1},
        {"options": {"guidance_scale": 1.5}},
        {"method": "negative-prompt"},
        {"size": (32, 32)},
    ]
    for other in others:
        inversion = cached.invert(picture, **{"prompt": PROMPT, **common, **other})
        assert inversion.report["cached"] is False, other
    assert len(cached.cache.list()) == 1 + len(others)


def test_guidance_apart_is_inverted_anew_only_where_the_method_is_fitted_for_it(cached, picture):
    common = {"method": "ddim", "num_inference_steps": STEPS}
    cached.invert(picture, PROMPT, **common)
    again = cached.invert(picture, PROMPT, **common, guidance_scale=3.0)
    assert again.report["cached"]
    assert again.guidance_scale == 3.0
    assert cached.reconstruct(again).guidance_scale == 3.0
    fitted = {"num_inference_steps": 2, "options": {"inner_steps": 1}}
    for scale in (2.0, 3.0):
        inversion = cached.invert(picture, PROMPT, **fitted, guidance_scale=scale)
        assert not inversion.report["cached"]


def test_a_batch_takes_from_the_cache_what_is_there_and_inverts_the_rest(cached, picture):
    common = {"method": "ddim", "num_inference_steps": STEPS}
    images = [np.roll(picture, shift, axis=1) for shift in (0, 8, 16)]
    cached.invert(images[1], PROMPT, **common)
    before = cached.denoiser.rows_forward
    inversions = cached.invert_many(images, PROMPT, **common)
    assert [each.report["cached"] for each in inversions] == [False, True, False]
    assert cached.denoiser.rows_forward - before == 2 * STEPS
    assert all(each.report["cached"] for each in cached.invert_many(images, PROMPT, **common))


@pytest.mark.parametrize("ended_by", [pivotal.Cancelled, KeyboardInterrupt])
def test_what_had_finished_when_a_batch_was_ended_is_kept(engine, cached, picture, ended_by):
    """Row by row the first image ends one answer before the second, which never gets its last."""
    cancellation = pivotal.Cancellation()

    class Ending:
        name, answers, calls = engine.denoiser.name, engine.denoiser.answers, 0

        def answer(self, query):
            self.calls += 1
            if self.calls == 2 * STEPS - 1:
                assert query.rows == 1
                if ended_by is pivotal.Cancelled:
                    cancellation.cancel()
            if self.calls == 2 * STEPS:
                raise KeyboardInterrupt
            return engine.denoiser.answer(query)

    common = {"method": "ddim", "num_inference_steps": STEPS}
    images = [picture, np.roll(picture, 8, axis=1)]
    ending = pivotal.Engine(engine.model, Ending(), cache=cached.cache)
    with pytest.raises(ended_by):
        ending.invert_many(images, PROMPT, max_rows=1, cancellation=cancellation, **common)
    kept = [each.report["cached"] for each in cached.invert_many(images, PROMPT, **common)]
    assert kept == [True, False]


def test_a_failing_image_leaves_the_finished_ones_in_the_cache(cached, picture, tmp_path):
    common = {"method": "ddim", "num_inference_steps": STEPS}
    with pytest.raises(pivotal.BatchError):
        cached.invert_many([picture, tmp_path / "nowhere.png"], PROMPT, **common)
    assert cached.invert(picture, PROMPT, **common).report["cached"]


def test_a_damaged_entry_is_inverted_again(cached, picture, caplog):
    common = {"method": "ddim", "num_inference_steps": STEPS}
    first = cached.invert(picture, PROMPT, **common)
    (entry,) = cached.cache.list()
    data = bytearray(entry.path.read_bytes())
    data[-1] ^= 255
    entry.path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        again = cached.invert(picture, PROMPT, **common)
    assert again.report["cached"] is False
    assert "dropped" in caplog.text
    assert torch.equal(again.inverted.noise, first.inverted.noise)
    assert cached.invert(picture, PROMPT, **common).report["cached"]


def test_a_cached_inversion_names_the_model_by_the_name_it_has_now(cached, picture):
    """Equal weights may be loaded from another folder than the one that the entry was made with."""
    common = {"method": "ddim", "num_inference_steps": STEPS}
    cached.invert(picture, PROMPT, **common)
    moved = pivotal.Engine(replace(cached.model, name="moved/here"), cache=cached.cache)
    again = moved.invert(picture, PROMPT, **common)
    assert again.report["cached"]
    assert again.model == "moved/here"
