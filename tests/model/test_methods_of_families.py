"""Every method on every family: inverted, sampled back and edited on tiny random models."""

from dataclasses import fields

import numpy as np
import pytest
import torch

import pivotal
from pivotal.inversion.registry import METHODS

FAMILIES = {
    "sd1": {},
    "sd2": {"prediction_type": "epsilon"},
    "sd2-v": {"prediction_type": "v_prediction"},
    "sdxl": {},
}
QUICK = ("ddim", "direct", "null-text", "edit-friendly")
CASES = [
    pytest.param(
        family, method, marks=() if family == "sdxl" and method in QUICK else pytest.mark.slow
    )
    for family in FAMILIES
    for method in METHODS
]


@pytest.fixture(scope="module")
def engines(sd_folder, sdxl_folder):
    made = {}

    def engine(family):
        if family not in made:
            name, folder = family.partition("-")[0], sdxl_folder if family == "sdxl" else sd_folder
            made[family] = pivotal.Engine.load(folder, family=name, **FAMILIES[family])
        return made[family]

    return engine


@pytest.mark.parametrize(("family", "method"), CASES)
def test_a_method_inverts_reconstructs_and_edits(engines, family, method):
    engine = engines(family)
    known = {field.name for field in fields(METHODS[method].options)}
    options = dict.fromkeys(known & {"inner_steps", "iterations"}, 1)
    options |= dict.fromkeys(known & {"skip"}, 0.0)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    inversion = engine.invert(
        picture, "the red cat", method=method, num_inference_steps=3, guidance_scale=2.0,
        options=options,
    )  # fmt: skip
    assert np.isfinite(engine.reconstruct(inversion).psnr)
    edited = engine.edit(inversion, "the red dog")
    assert edited.latents.isfinite().all()
    assert not torch.equal(edited.latents[0], edited.latents[1])
