"""Runs the tests of Triton kernels in Triton's interpreter, in a process of its own: the choice is made at import."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(
    "name",
    [
        "test_triton_kernels.py",
        "test_triton_store_matrix.py",
        "test_triton_dense.py",
        "test_flash.py",
        "test_norm_activation.py",
        "test_linear.py",
        "test_inputs.py",
    ],
)
def test_interpreted(name: str):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    tests = Path(__file__).with_name(name)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-W", "ignore", str(tests)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
