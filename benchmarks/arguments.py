"""What several benchmarks take on the command line."""

import argparse

from benchmarks.made_up import CONFIGS
from octavo.base.errors import OctavoError
from octavo.kv.plan import parse_dtype, split_dtypes

__all__ = ["caches", "models"]


def caches(text: str) -> tuple[str, ...]:
    """`bf16,int8/int4` -> bf16 and int8,int4, each of them a scheme or a K,V pair."""
    named = split_dtypes([text])
    try:
        for name in named:
            parse_dtype(name)
    except OctavoError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return named


def models(text: str) -> tuple[str, ...]:
    """Shapes that a model can be made up in."""
    named = tuple(text.split(","))
    if unknown := [name for name in named if name not in CONFIGS]:
        raise argparse.ArgumentTypeError(f"no such shape: {', '.join(unknown)}; there are {', '.join(CONFIGS)}")
    return named
