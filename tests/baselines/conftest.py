"""A tiny seeded float64 UNet that listens to its prompt, and SD 1.x's schedule."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from baselines.attention import attention_modules

LENGTH, WIDTH = 11, 16


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """These networks are far too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def unet():
    """Cross-attention at 16 x 16 and 8 x 8; attn2 scaled up, or random weights ignore the text."""
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    with torch.no_grad():
        for place, attention in attention_modules(model):
            gain = 4.0 if place.endswith("attn2") else 2.0
            for layer in (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]):
                layer.weight.mul_(gain)
    return model.double().eval()


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
