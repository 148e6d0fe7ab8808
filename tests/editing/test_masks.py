"""Where an edit may change: soft edges, pixels put back, and what the edit says of both."""

import numpy as np
import pytest
import torch

from pivotal import Edit
from pivotal.editing.blend import blend, feathered
from pivotal.editing.masks import allowed_pixels, pixel_weights, put_back

SQUARE = torch.zeros(24, 32, dtype=torch.bool)
SQUARE[6:18, 8:24] = True
SCATTERED = torch.zeros(24, 32, dtype=torch.bool)
SCATTERED[[0, 3, 20, 11], [31, 5, 9, 10]] = True
SCATTERED[15:, 20:] = True


def distance_to_edge(mask):
    """Of each place to the nearest of the other kind, by the larger of both sides: brute force."""
    places = torch.cartesian_prod(*map(torch.arange, mask.shape))
    other = [places[mask.flatten() != value] for value in (False, True)]
    nearest = [
        (place - other[int(inside)]).abs().amax(dim=1).min()
        for place, inside in zip(places, mask.flatten(), strict=True)
    ]
    return torch.stack(nearest).view(mask.shape)


@pytest.mark.parametrize("mask", [SQUARE, SCATTERED], ids=["square", "scattered"])
@pytest.mark.parametrize("width", [0.5, 1, 2.5, 4])
def test_a_feather_reaches_its_width_and_no_further(width, mask):
    soft = feathered(mask, width)
    far = distance_to_edge(mask) > np.ceil(width)
    assert torch.equal(soft[far], mask[far].float())
    near = ~far & (distance_to_edge(mask) <= width)
    assert ((soft[near] > 0) & (soft[near] < 1)).all()


def test_a_feathers_middle_is_the_edge_and_it_falls_outwards():
    soft = feathered(SQUARE, 4)
    row = soft[12, :16]  # the edge lies between columns 7 and 8
    assert (row.diff() >= 0).all()
    assert row[7] + row[8] == pytest.approx(1, abs=1e-6)


def test_no_feather_is_the_mask_itself():
    assert feathered(SQUARE, 0) is SQUARE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_soft_blend_is_exact_at_its_ends(dtype):
    latents = torch.randn(2, 4, 24, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights = feathered(SQUARE, 3)
    blended = blend(latents, weights[None])
    assert blended.dtype == dtype
    assert torch.equal(blended[1][:, weights == 1], latents[1][:, weights == 1])
    assert torch.equal(blended[1][:, weights == 0], latents[0][:, weights == 0])
    between = (weights > 0) & (weights < 1)
    mean = torch.lerp(latents[0], latents[1], weights.to(dtype))
    torch.testing.assert_close(blended[1][:, between], mean[:, between])


def test_a_users_mask_bounds_pixels_where_latents_are_coarser():
    mask = torch.zeros(96, 128, dtype=torch.bool)
    mask[30:40, 50:60] = True
    region = torch.zeros(24, 32, dtype=torch.bool)
    region[7:10, 12:15] = True  # every latent that the mask touches
    edit = Edit("a dog", mask=mask, preserve="pixel")
    assert torch.equal(pixel_weights(region, edit, (96, 128)), mask)
    assert torch.equal(allowed_pixels(region, edit, (96, 128)), mask)
    coarse = allowed_pixels(region, Edit("a dog", mask=mask), (96, 128))
    assert coarse.nonzero().amin(0).tolist() == [28, 48]
    assert coarse.nonzero().amax(0).tolist() == [39, 59]
    joined = Edit("a dog", mask=mask, blend=("dog",), mask_with_blend="or", preserve="pixel")
    assert torch.equal(allowed_pixels(region, joined, (96, 128)), coarse)


def test_pixels_are_put_back_exactly_where_nothing_may_change():
    generator = np.random.default_rng(0)
    source, edited = generator.integers(0, 256, (2, 24, 32, 3), dtype=np.uint8)
    weights = feathered(SQUARE, 3)
    mixed = put_back(source, edited, weights)
    assert np.array_equal(mixed[weights == 0], source[weights == 0])
    assert np.array_equal(mixed[weights == 1], edited[weights == 1])
    assert np.array_equal(put_back(source, edited, SQUARE)[SQUARE], edited[SQUARE])
    low, high = np.minimum(source, edited), np.maximum(source, edited)
    assert ((mixed >= low) & (mixed <= high)).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feather": -1, "blend": "auto"}, "feather=-1; pixels from 0"),
        ({"feather": float("nan"), "blend": "auto"}, "feather=nan"),
        ({"feather": 2}, "are about the outside of a mask or blend"),
        ({"preserve": "pixel"}, "are about the outside of a mask or blend"),
        ({"preserve": "all", "blend": "auto"}, "preserve='all' is unknown; accepted are none"),
        ({"mask_with_blend": "xor"}, "mask_with_blend='xor'; accepted are and, or"),
        ({"mask_with_blend": "or", "blend": "auto"}, "give both"),
        ({"mask_words": "cat"}, "give a tuple of words"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Edit("a dog", **fields)


def test_a_mask_and_a_blend_may_be_joined(edited, routed, noise):
    cat, dog = "a cat sitting on the red sofa", "a dog sitting on the red sofa"
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[:, :3] = True
    words = {"blend": ("cat", "dog"), "blend_threshold": 0.9, "blend_start": 0.4}
    denoiser = routed()
    _, free = edited(denoiser, cat, [Edit(dog, **words)], noise)
    latents, both = edited(
        denoiser, cat, [Edit(dog, mask=mask, mask_with_blend="or", **words)], noise
    )
    assert (both.masks[0] & mask).sum() == mask.sum()
    assert (both.masks[0] & ~mask).any()
    assert (free.masks[0] & ~mask).any()
    outside = ~both.masks[0]
    assert outside.any()
    assert torch.equal(latents[1][:, outside], latents[0][:, outside])


def test_with_nothing_preserved_a_mask_only_measures(edited, routed, noise):
    cat, dog = "a cat sitting on the red sofa", "a dog sitting on the red sofa"
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[:, :3] = True
    denoiser = routed()
    free, _ = edited(denoiser, cat, [Edit(dog)], noise)
    measured, control = edited(denoiser, cat, [Edit(dog, mask=mask, preserve="none")], noise)
    assert torch.equal(measured, free)
    assert torch.equal(control.masks[0], mask)
    assert "mask" not in control.touched(0)
