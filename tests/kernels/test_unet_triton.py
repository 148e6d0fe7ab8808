"""A whole UNet with routes on the Triton kernel (see test_routed_attention_triton.py)."""

import os

import pytest
import torch

from pivotal.attention_routes import AttentionRoutes
from pivotal.model.unet import RoutedUNet

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]


def an_edit(rows, length, network, generator):
    """The last row borrows from the first, with words mixed and weighted; the others are free."""
    routes = AttentionRoutes.identity(
        rows, length, 2, len(network.self_layers), len(network.cross_layers)
    )
    routes.donors[-1] = 0
    routes.cross_gate[:, -1] = 1
    routes.mix[-1] = torch.rand(length, length, generator=generator)
    routes.keep[-1] = torch.rand(length, generator=generator)
    routes.words[:, 2, 0] = 1
    routes.words[:, 4, 1] = 1
    return routes.to(DEVICE)


def test_an_edit_through_a_unet_is_the_same_on_the_kernel(plain_unet, generator):
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    hidden = torch.randn(2, 7, 16, generator=generator)
    timesteps = torch.tensor([900.0, 500.0])
    found = {}
    for impl in ("triton", "reference"):
        unet = plain_unet(dtype=torch.float32)
        network = RoutedUNet(unet, word_map_downscale=2, impl=impl).to(DEVICE)
        routes = an_edit(2, 7, network, generator.manual_seed(1))
        with torch.no_grad():
            found[impl] = network(
                *(t.to(DEVICE) for t in (latents, timesteps, hidden)), routes=routes
            )
            free, _ = network(*(t.to(DEVICE) for t in (latents, timesteps, hidden)))
    torch.testing.assert_close(found["triton"], found["reference"], rtol=1e-4, atol=1e-4)
    difference = (found["triton"][0] - free).abs().amax(dim=(1, 2, 3))
    assert difference[-1] > 0.01  # the edit acts
    assert (difference[:-1] < 1e-4).all()  # on its own row alone
