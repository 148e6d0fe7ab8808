"""The one-kernel GroupNorm and SiLU that the benchmark compares (see test_interpreter.py)."""

import os
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
FOLDER = Path(__file__).parents[2] / "benchmarks" / "kernels"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]


def test_one_kernel_is_group_norm_then_silu(generator, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from group_norm_silu import eager, one_kernel

    shapes = ((2, 64, 5, 7), (64,), (64,))
    x, w, b = (torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes)
    torch.testing.assert_close(one_kernel(x, w, b), eager(x, w, b), rtol=1e-5, atol=1e-5)
