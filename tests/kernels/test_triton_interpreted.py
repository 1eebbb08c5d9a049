"""Runs test_triton_kernels.py in Triton's interpreter, in a process of its own: the choice is made at import."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_interpreted():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    tests = Path(__file__).with_name("test_triton_kernels.py")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-W", "ignore", str(tests)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
