"""The one-kernel GroupNorm and SiLU that the benchmark compares, in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "kernels"
CODE = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from group_norm_silu import eager, one_kernel
x, w, b = torch.randn(2, 64, 5, 7), torch.randn(64), torch.randn(64)
torch.testing.assert_close(one_kernel(x, w, b), eager(x, w, b), rtol=1e-5, atol=1e-5)
"""


def test_one_kernel_is_group_norm_then_silu():
    pytest.importorskip("triton")
    command = [sys.executable, "-c", CODE, str(FOLDER)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
