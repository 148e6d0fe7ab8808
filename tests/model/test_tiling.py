"""A picture in tiles comes out nearly as in one piece, in memory that does not grow with it."""

import numpy as np
import pytest
import torch
from skimage import data, transform

from pivotal.images import from_tensor, psnr, to_tensor
from pivotal.model.load import load
from pivotal.model.tiling import OVERLAP, TILE, _ramp, _starts
from pivotal.runtime.memory_count import AllocationCount
from pivotal.runtime.memory_plan import NetworkMemory


@pytest.fixture(scope="module")
def autoencoder():
    return load("shapes").autoencoder


@pytest.fixture
def tiles(autoencoder, monkeypatch):
    monkeypatch.setattr(autoencoder, "tiled", True)
    return autoencoder


def photograph(height, width):
    pixels = transform.resize(data.astronaut(), (height, width), anti_aliasing=True)
    return to_tensor((pixels * 255).round().astype(np.uint8))


@pytest.mark.parametrize("side", [1, 63, 64, 65, 80, 111, 112, 113, 200])
def test_tiles_cover_a_side_and_overlap(side):
    starts = _starts(side)
    ends = [min(start + TILE, side) for start in starts]
    assert (starts[0], ends[-1]) == (0, side)
    for start, end in zip(starts[1:], ends, strict=False):
        assert end - start >= OVERLAP


def test_weights_of_neighbours_add_up_wherever_a_tiles_end_is_not_trusted():
    falling, rising = _ramp(64, 4, False, True), _ramp(64, 4, True, False)
    total = falling[-OVERLAP * 4 :] + rising[: OVERLAP * 4]
    torch.testing.assert_close(total, torch.ones(OVERLAP * 4), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_small_picture_is_not_cut(autoencoder, tiles):
    image = photograph(64, 256)
    latents = tiles.encode(image)
    autoencoder.tiled = False
    assert torch.equal(autoencoder.encode(image), latents)


@torch.no_grad()
def test_tiles_make_nearly_what_one_piece_does(autoencoder, monkeypatch):
    image = photograph(64, 400)  # latents of 16 x 100: two tiles
    latents = autoencoder.encode(image)
    (whole,) = from_tensor(autoencoder.decode(latents))
    monkeypatch.setattr(autoencoder, "tiled", True)
    tiled = autoencoder.encode(image)
    (pieced,) = from_tensor(autoencoder.decode(latents))
    assert tiled.shape == latents.shape
    assert (tiled - latents).square().mean().sqrt() < 0.05 * latents.std()
    assert psnr(whole, pieced) > 38
    vae = autoencoder.vae  # diffusers' own tiles, each normalised by itself, as the yardstick
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = TILE, 4 * TILE
    try:
        (theirs,) = from_tensor(vae.decode(autoencoder.unscaled(latents)).sample)
    finally:
        vae.disable_tiling()
    assert psnr(whole, pieced) > psnr(whole, theirs) + 3


def test_a_tiled_decoding_has_gradients(tiles):
    latents = torch.randn(1, 4, 4, 70, requires_grad=True)
    tiles.decode(latents).square().mean().backward()
    assert (latents.grad.abs().amax((0, 1, 2)) > 0).all()


@pytest.mark.slow
@torch.no_grad()
def test_memory_stays_below_the_plan_and_far_below_one_pieces(tiles):
    model = load("shapes")
    configs = {"vae": tiles.vae.config}
    sizes = {}
    for tiled in (False, True):
        tiles.tiled = tiled
        planned = NetworkMemory(
            configs, model.family, model.precision, tiled_autoencoder=tiled
        ).autoencode((1024, 1024))
        with AllocationCount() as count:
            tiles.decode(torch.zeros(1, 4, 256, 256))
        sizes[tiled] = count.peak(1)
        assert sizes[tiled] <= 1.02 * planned
    assert sizes[True] < sizes[False] / 3
