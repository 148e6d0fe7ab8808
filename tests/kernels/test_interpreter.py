"""Triton decides when it is imported whether to interpret: its tests get a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("test_*_triton.py"))


def in_the_interpreter(selected):
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, FILES)]
    done = subprocess.run(
        [*command, "-m", selected],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_kernels_pass_in_tritons_interpreter():
    assert len(FILES) > 2
    in_the_interpreter("not slow and not gpu")


@pytest.mark.slow
def test_kernels_pass_in_tritons_interpreter_with_any_shape():
    in_the_interpreter("slow and not gpu")
