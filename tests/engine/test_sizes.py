"""A photograph of any size through inversion and edit."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from skimage import data, transform

import pivotal
from pivotal.model.autoencoder import Autoencoder
from pivotal.model.unet import RoutedUNet

TARGET = "a blue circle on a gray background"
SIZES = [(512, 768), (880, 1184), (1024, 576), (333, 517)]


def photograph(size):
    pixels = transform.resize(data.astronaut(), size, anti_aliasing=True)
    return (pixels * 255).round().astype(np.uint8)


def invert(engine, picture, **options):
    return engine.invert(picture, "a red circle", method="ddim", num_inference_steps=2, **options)


@pytest.mark.parametrize("size", SIZES)
def test_an_edited_photograph_has_its_own_size(engine, size):
    inversion = invert(engine, photograph(size), policy="fit")
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
        alone = invert(engine, photograph(size), policy="fit")
        assert alone.picture.size == inversion.picture.size
        difference = (alone.inverted.noise - inversion.inverted.noise).abs().max()
        assert difference <= 1e-4 * alone.inverted.noise.abs().max()


@pytest.fixture(scope="module")
def of_eighths(engine):
    """Networks of Stable Diffusion's shape, tiny and random: eight pixels a latent, halved once."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=engine.model.unet.unet.config.cross_attention_dim,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
    )
    family = dataclasses.replace(engine.model.family, latent_scale=8, word_map_downscale=2)
    model = dataclasses.replace(
        engine.model,
        family=family,
        unet=RoutedUNet(unet, word_map_downscale=2).eval().requires_grad_(False),
        autoencoder=Autoencoder(vae),
    )
    return pivotal.Engine(model)


@pytest.mark.parametrize(
    "size",
    [(333, 517), *(pytest.param(size, marks=pytest.mark.slow) for size in SIZES[:3])],
)
def test_a_photograph_is_edited_at_its_own_size(of_eighths, size):
    """333 x 517 is padded to 336 x 520: latents of 42 x 65, which halve unevenly."""
    inversion = invert(of_eighths, photograph(size), policy="pad", size="source")
    edited = of_eighths.edit(inversion, TARGET, blend="auto")
    back = inversion.picture.unfit(inversion.picture.pixels)
    assert np.array_equal(back, photograph(size))
    assert inversion.picture.unfit(edited.pictures[0]).shape == (*size, 3)
    assert [math.ceil(side / 16) for side in size] == list(edited.heat_maps[0]["blue"].shape)
