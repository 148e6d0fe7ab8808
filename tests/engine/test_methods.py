"""Every registered method through the engine: inverted, filed, cached, sampled back and edited."""

from dataclasses import fields

import numpy as np
import pytest
import torch

import pivotal
from pivotal.inversion.registry import METHODS

PROMPT = "a red circle on a gray background"
BLUE = "a blue circle on a gray background"


@pytest.mark.parametrize("method", METHODS)
def test_a_method_survives_its_file_and_the_cache_and_edits_alike(
    engine, picture, tmp_path, method
):
    cached = pivotal.Engine(engine.model, cache=pivotal.InversionCache(tmp_path / "cache"))
    known = {field.name for field in fields(METHODS[method].options)}
    common = {"method": method, "num_inference_steps": 2, "guidance_scale": 2.0, "size": (32, 32)}
    common["options"] = dict.fromkeys(known & {"inner_steps", "iterations"}, 1)  # for speed
    inversion = cached.invert(picture, PROMPT, **common)
    assert inversion.guidance_scale == 2.0
    pivotal.write_inversion(inversion, tmp_path / "inversion.safetensors")
    edited = cached.edit(inversion, BLUE)
    kept = cached.invert(picture, PROMPT, **common)
    assert kept.report["cached"]
    for again in (pivotal.read_inversion(tmp_path / "inversion.safetensors"), kept):
        assert dict(again.options) == dict(inversion.options)
        assert torch.equal(cached.edit(again, BLUE).latents, edited.latents)
    found = cached.reconstruct(inversion)
    assert np.isfinite(found.psnr)
    assert np.abs(found.picture.astype(int) - edited.source.picture).max() <= 1
