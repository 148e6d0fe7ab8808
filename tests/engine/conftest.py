"""Engines on small real networks, in few steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import pivotal
from pivotal.model.unet import RoutedUNet

PROMPT = "a red circle on a gray background"
STEPS = 4


@pytest.fixture(scope="session")
def trained():
    """The bundled model, where pictures have to come out well."""
    return pivotal.Engine.load("shapes")


@pytest.fixture(scope="session")
def engine(trained, plain_unet):
    """The bundled model's text encoder and autoencoder, and a random UNet 2.5 times as fast."""
    trained_unet = trained.model.unet.unet
    unet = plain_unet(dtype=torch.float32, width=trained_unet.config.cross_attention_dim)
    attention = trained.model.unet.attention
    routed = RoutedUNet(unet.requires_grad_(False), word_map_downscale=1, impl=attention)
    return pivotal.Engine(replace(trained.model, unet=routed, plain_fingerprint="1" * 64))


@pytest.fixture(scope="session")
def picture():
    """A red disc on grey, drawn without the project's own scenes."""
    y, x = np.mgrid[:64, :64]
    pixels = np.full((64, 64, 3), 128, np.uint8)
    pixels[(x - 30) ** 2 + (y - 34) ** 2 < 14**2] = (220, 40, 40)
    return pixels


@pytest.fixture(scope="session")
def inversion(engine, picture):
    return engine.invert(picture, PROMPT, method="ddim", num_inference_steps=STEPS)


@pytest.fixture(scope="session")
def trained_inversion(trained, picture):
    return trained.invert(picture, PROMPT, method="ddim", num_inference_steps=STEPS)
