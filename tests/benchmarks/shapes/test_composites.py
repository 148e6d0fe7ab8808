"""Composites: what the decoder is trained on besides round trips."""

import numpy as np
import torch

from shapes.composites import composite, edited_pair


def test_a_pair_differs_only_where_it_says():
    for seed in range(20):
        before, after, places = edited_pair(np.random.default_rng(seed))
        pixels = np.kron(places, np.ones((4, 4))).astype(bool)
        # An object's soft edge reaches at most a pixel beyond the places it covers by half.
        inner = pixels | np.roll(pixels, 1, 0) | np.roll(pixels, -1, 0)
        inner = inner | np.roll(inner, 1, 1) | np.roll(inner, -1, 1)
        assert np.array_equal(before[~inner], after[~inner])
        assert places.any()


def test_a_composite_keeps_the_source_outside_and_drives_the_object_inside():
    torch.manual_seed(0)
    before, after = torch.randn(2, 3, 4, 16, 16)
    places = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
    places[:, :, 4:9, 5:12] = True
    mixed = composite(
        before, after, places, np.random.default_rng(1), torch.Generator().manual_seed(1)
    )
    outside = ~places.expand_as(before)
    assert torch.equal(mixed[outside], before[outside])
    assert mixed[~outside].std() > after[~outside].std()
