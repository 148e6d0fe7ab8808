"""The engine on the bundled model: small, real, few steps."""

import numpy as np
import pytest

import pivotal

PROMPT = "a red circle on a gray background"
STEPS = 4


@pytest.fixture(scope="session")
def engine():
    return pivotal.Engine.load("shapes")


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
