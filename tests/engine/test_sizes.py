"""A photograph of any size through inversion and edit."""

import numpy as np
import pytest
from skimage import data, transform

TARGET = "a blue circle on a gray background"
SIZES = [(512, 768), (880, 1184), (1024, 576), (333, 517)]


def photograph(size):
    pixels = transform.resize(data.astronaut(), size, anti_aliasing=True)
    return (pixels * 255).round().astype(np.uint8)


def invert(engine, size, **options):
    return engine.invert(
        photograph(size), "a red circle", method="ddim", num_inference_steps=2, **options
    )


@pytest.mark.parametrize("size", SIZES)
def test_an_edited_photograph_has_its_own_size(engine, size):
    inversion = invert(engine, size, policy="fit")
    height, width = inversion.picture.size
    assert height / width == pytest.approx(size[0] / size[1], rel=0.06)
    edited = engine.edit(inversion, TARGET, blend="auto")
    assert inversion.picture.unfit(edited.pictures[0]).shape == (*size, 3)
    (heat_map,) = (maps["blue"] for maps in edited.heat_maps)
    sides = [side // engine.model.autoencoder.scale for side in (height, width)]
    halvings = engine.model.family.word_map_downscale
    assert list(heat_map.shape) == [-(-side // halvings) for side in sides]


def test_images_of_different_sizes_are_inverted_together(engine):
    sizes = SIZES[2:]
    together = engine.invert_many(
        [photograph(size) for size in sizes],
        "a red circle",
        method="ddim",
        num_inference_steps=2,
        policy="fit",
    )
    for size, inversion in zip(sizes, together, strict=True):
        alone = invert(engine, size, policy="fit")
        assert alone.picture.size == inversion.picture.size
        difference = (alone.inverted.noise - inversion.inverted.noise).abs().max()
        assert difference <= 1e-4 * alone.inverted.noise.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_a_photograph_is_edited_at_its_own_size(engine, size):
    inversion = invert(engine, size, policy="pad", size="source")
    edited = engine.edit(inversion, TARGET, blend="auto")
    back = inversion.picture.unfit(inversion.picture.pixels)
    assert np.array_equal(back, photograph(size))
    assert inversion.picture.unfit(edited.pictures[0]).shape == (*size, 3)
