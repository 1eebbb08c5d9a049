"""What benchmarks take on the command line: caches and shapes are checked before anything is measured."""

import argparse
import subprocess
import sys

import pytest

from benchmarks.arguments import caches, models


def test_pairs_are_written_with_a_stroke():
    assert caches("bf16,int8/int4,8/4") == ("bf16", "int8,int4", "8,4")
    assert models("7b,tiny") == ("7b", "tiny")


@pytest.mark.parametrize("text", ["int9", "bf16,int8/int9", "auto:8", "int8/int4/int8"])
def test_unknown_caches(text: str):
    with pytest.raises(argparse.ArgumentTypeError, match=r"int9|auto|int8,int4,int8"):
        caches(text)


def test_no_cache_at_all():
    with pytest.raises(argparse.ArgumentTypeError, match="no cache is named"):
        caches(" ,")


def test_unknown_shapes():
    with pytest.raises(argparse.ArgumentTypeError, match=r"no such shape: 9b; there are 7b, 8b, tiny"):
        models("7b,9b")


def test_a_cache_that_fails_is_told_in_the_end():
    """The others run all the same."""
    words = ["--tiny", "--dtypes", "int8-static,int8", "--requests", "2"]
    ran = subprocess.run([sys.executable, "-m", "benchmarks.throughput", *words], capture_output=True, text=True)
    assert ran.returncode == 1
    failed, whole = [line for line in ran.stdout.splitlines() if "tiny" in line]
    assert "int8-static" in failed and "output tok/s" in whole
