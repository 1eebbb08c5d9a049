"""What several benchmarks take on the command line, checked before anything is measured."""

import argparse

from benchmarks.made_up import CONFIGS
from octavo.base.errors import OctavoError
from octavo.kv.plan import parse_dtype, split_dtypes

__all__ = ["cache", "caches", "models"]


def cache(text: str) -> str:
    """A scheme, or a K,V pair: `int8` or `int8,int4`."""
    try:
        parse_dtype(text)
    except OctavoError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def caches(text: str) -> tuple[str, ...]:
    """`bf16,int8/int4` -> bf16 and int8,int4: commas stand between them."""
    if not (named := split_dtypes([text])):
        raise argparse.ArgumentTypeError("no cache is named; write a scheme, such as int8, or several: bf16,int8/int4")
    return tuple(map(cache, named))


def models(text: str) -> tuple[str, ...]:
    """Shapes that a model can be made up in."""
    named = tuple(text.split(","))
    if unknown := [name for name in named if name not in CONFIGS]:
        raise argparse.ArgumentTypeError(f"no such shape: {', '.join(unknown)}; there are {', '.join(CONFIGS)}")
    return named
