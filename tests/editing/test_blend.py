import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.local_blend import region
from pivotal.editing.blend import blend, latent_mask, word_mask


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    maps=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    factor=st.integers(1, 4),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    pool=st.booleans(),
)
def test_masks_are_the_references(seed, maps, factor, threshold, pool):
    generator = torch.Generator().manual_seed(seed)
    heat = torch.rand(3, *maps, generator=generator, dtype=torch.float64)
    size = (factor * maps[0], factor * maps[1])
    ours = word_mask(heat, size, threshold, pool=pool)
    theirs = region(
        heat.flatten(1)[:, None, :, None],  # one layer, one head, one token
        torch.ones(3, 1),
        threshold,
        maps,
        size,
        pool=pool,
    )
    assert torch.equal(ours | ours[:1], theirs[:, 0])  # theirs joins the source's region


def test_sides_that_do_not_divide_are_scaled_to_the_nearest():
    heat = torch.zeros(1, 3, 4)
    heat[0, 0, 0] = 1
    mask = word_mask(heat, (5, 7), 0.3, pool=False)
    assert mask[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_pooling_widens_a_region_by_one():
    heat = torch.zeros(1, 5, 5)
    heat[0, 2, 2] = 1
    assert word_mask(heat, (5, 5), 0.3, pool=False).sum() == 1
    assert word_mask(heat, (5, 5), 0.3, pool=True)[0, 1:4, 1:4].all()
    assert word_mask(heat, (5, 5), 0.3, pool=True).sum() == 9


@pytest.mark.parametrize("pool", [True, False])
def test_a_row_without_the_word_has_no_region(pool):
    heat = torch.stack([torch.zeros(4, 4), torch.ones(4, 4)])
    mask = word_mask(heat, (8, 8), 0.3, pool=pool)
    assert not mask[0].any()
    assert mask[1].all()


def test_each_row_is_measured_by_its_own_maximum():
    heat = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0))
    mask = word_mask(torch.cat([heat, 4096 * heat]), (6, 6), 0.5, pool=True)
    assert torch.equal(mask[0], mask[1])


def test_blending_copies_the_source_outside_and_nothing_inside():
    latents = torch.randn(3, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    before = latents.clone()
    mask = torch.zeros(2, 5, 7, dtype=torch.bool)
    mask[0, 1:3] = True
    mask[1] = True
    blended = blend(latents, mask)
    assert torch.equal(latents, before)
    assert torch.equal(blended[0], latents[0])
    assert torch.equal(blended[1][:, mask[0]], latents[1][:, mask[0]])
    assert torch.equal(blended[1][:, ~mask[0]], latents[0][:, ~mask[0]])
    assert torch.equal(blended[2], latents[2])


def test_a_latent_may_change_if_any_of_its_pixels_may():
    mask = torch.zeros(16, 24, dtype=torch.bool)
    mask[8, 15] = True
    assert latent_mask(mask, (4, 6)).nonzero().tolist() == [[2, 3]]
    mask[7, 0] = True
    assert latent_mask(mask, (4, 6)).nonzero().tolist() == [[1, 0], [2, 3]]
    assert latent_mask(~torch.zeros_like(mask), (4, 6)).all()
    assert not latent_mask(torch.zeros_like(mask), (4, 6)).any()
