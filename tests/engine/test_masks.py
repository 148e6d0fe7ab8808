"""Masks through the engine: words' regions, pixels put back, decibels outside."""

import math

import numpy as np
import pytest
import torch

import pivotal

BLUE = "a blue circle on a gray background"
FREE = {"cross_replace_steps": 0.0, "self_replace_steps": (0.0, 0.3)}
HALF = torch.zeros(64, 64, dtype=torch.bool)
HALF[:, :30] = True  # not a whole number of latents


def edit(engine, inversion, **fields):
    return engine.edit(inversion, pivotal.Edit(BLUE, **FREE, **fields))


def test_what_is_preserved_decides_the_decibels_outside(trained, trained_inversion):
    kept = {
        preserve: edit(trained, trained_inversion, mask=HALF, preserve=preserve).outside_mask_psnr[
            0
        ]
        for preserve in ("none", "latent", "pixel")
    }
    assert kept["none"] < kept["latent"] < kept["pixel"] == math.inf


def test_pixels_outside_are_the_pictures_own_and_the_feather_lies_between(engine, inversion):
    edited = edit(engine, inversion, mask=HALF, preserve="pixel", feather=6)
    source, found = inversion.picture.pixels, edited.pictures[0]
    assert np.array_equal(found[:, 36:], source[:, 36:])
    assert torch.equal(edited.masks[0], torch.arange(64).expand(64, 64) < 36)
    assert not np.array_equal(found[:, 30:36], source[:, 30:36])
    assert edited.outside_mask_psnr == [math.inf]


def test_latents_outside_a_feather_are_the_sources(engine, inversion):
    edited = edit(engine, inversion, mask=HALF, feather=8)
    difference = (edited.latents[1] - edited.latents[0]).abs().amax(0)
    assert difference[:, 8 + 2 :].max() == 0  # 30 pixels reach into latent 7; 8 more are two
    assert difference[:, 8:10].min() > 0
    assert edited.masks[0].any(0).nonzero().max() == 4 * 10 - 1


def test_a_words_region_is_where_it_looks_in_a_reconstruction(trained, trained_inversion):
    edited = edit(trained, trained_inversion, mask_words=("circle",), preserve="pixel")
    mask = edited.edits[0].mask
    assert mask.shape == HALF.shape
    assert 0.01 < mask.double().mean() < 0.9
    assert edited.unet_rows > edit(trained, trained_inversion).unet_rows
    other = (
        edit(trained, trained_inversion, mask_words=("circle",), blend_threshold=0.6).edits[0].mask
    )
    assert not (other & ~mask).any()
    assert (other != mask).any()
    both = edit(trained, trained_inversion, mask_words=("circle",), mask=HALF).edits[0].mask
    assert torch.equal(both, mask & HALF)


def test_a_word_that_the_source_has_not_is_refused_before_anything_runs(engine, inversion):
    heard = []
    with pytest.raises(ValueError, match="square"):
        engine.edit(inversion, pivotal.Edit(BLUE, mask_words=("square",)), on_progress=heard.append)
    assert not heard
