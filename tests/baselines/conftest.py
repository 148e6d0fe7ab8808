"""The tiny UNet in float64, and SD 1.x's schedule."""

import pytest
import torch

LENGTH, WIDTH = 11, 16


@pytest.fixture(scope="package")
def unet(plain_unet):
    """Cross-attention at the latents' side and at half of it. float64."""
    return plain_unet()


@pytest.fixture(scope="package")
def config():
    return {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "timestep_spacing": "leading",
        "prediction_type": "epsilon",
        "clip_sample": False,
    }


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(1)


@pytest.fixture
def texts(generator):
    """Three prompts' embeddings and the null one, `[4, L, D]`."""
    return torch.randn(4, LENGTH, WIDTH, generator=generator, dtype=torch.float64)


@pytest.fixture
def noise(generator):
    return torch.randn(1, 4, 16, 16, generator=generator, dtype=torch.float64)
