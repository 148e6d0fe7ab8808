import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline

from pivotal.errors import NonFiniteError
from pivotal.model.autoencoder import Autoencoder
from pivotal.model.load import load


def tiny(**more):
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=0.5,
        **more,
    )


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("folder", "family", "pipeline"),
    [
        ("sd_folder", "sd1", StableDiffusionPipeline),
        ("sdxl_folder", "sdxl", StableDiffusionXLPipeline),
    ],
)
def test_images_are_encoded_and_decoded_as_diffusers_does(
    folder, family, pipeline, images, request
):
    folder = request.getfixturevalue(folder)
    vae = pipeline.from_pretrained(folder, local_files_only=True).vae.float()
    autoencoder = load(folder, family=family, dtype="bfloat16").autoencoder
    with torch.no_grad():
        expected = vae.encode(images).latent_dist.mode() * vae.config.scaling_factor
        decoded = vae.decode(expected / vae.config.scaling_factor).sample
    latents = autoencoder.encode(images)
    torch.testing.assert_close(latents, expected)
    torch.testing.assert_close(autoencoder.decode(latents), decoded)
    assert latents.shape == (2, 4, 16, 24)
    assert (latents.dtype, autoencoder.dtype) == (torch.float32, torch.float32)


def test_shift_and_channel_statistics_of_the_config_count(images):
    plain = Autoencoder(tiny()).encode(images)
    shifted = Autoencoder(tiny(shift_factor=0.25))
    torch.testing.assert_close(shifted.encode(images), plain - 0.25 * 0.5)
    mean, std = [1.0, 2.0, 3.0, 4.0], [0.5, 1.0, 2.0, 4.0]
    whitened = Autoencoder(tiny(latents_mean=mean, latents_std=std))
    column = (1, 4, 1, 1)
    expected = (plain - 0.5 * torch.tensor(mean).view(column)) / torch.tensor(std).view(column)
    torch.testing.assert_close(whitened.encode(images), expected)
    for autoencoder in (shifted, whitened):
        latents = autoencoder.encode(images)
        torch.testing.assert_close(autoencoder.decode(latents), Autoencoder(tiny()).decode(plain))


def test_decoding_is_differentiable_in_the_latents_alone():
    autoencoder = Autoencoder(tiny())
    latents = torch.zeros(1, 4, 4, 4, requires_grad=True)
    autoencoder.decode(latents).sum().backward()
    assert latents.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in autoencoder.vae.parameters())


@pytest.mark.parametrize(("height", "width"), [(31, 32), (32, 33), (0, 32)])
def test_sides_that_do_not_fit_are_refused(height, width):
    with pytest.raises(ValueError, match=f"{height} x {width} pixels.*multiples of 2"):
        Autoencoder(tiny()).encode(torch.zeros(1, 3, height, width))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        Autoencoder(tiny()).encode(torch.zeros(1, 4, 32, 32))
    with pytest.raises(ValueError, match=r"\[B, 4, h, w\]"):
        Autoencoder(tiny()).decode(torch.zeros(4, 32, 32))


def test_nan_and_infinity_raise():
    autoencoder = Autoencoder(tiny())
    with pytest.raises(NonFiniteError, match=r"encoded latents of the autoencoder.*float32"):
        autoencoder.encode(torch.full((1, 3, 32, 32), float("nan")))
    with pytest.raises(NonFiniteError, match="decoded image"):
        autoencoder.decode(torch.full((1, 4, 4, 4), float("inf")))
