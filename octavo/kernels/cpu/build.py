"""Compiled kernels that stay on disk: one per pair of row codecs, thrown away when any source of theirs changes.

Numba keys its disk cache on the argument types and on the kernel's own file, not on the files of the functions that it
calls. So a kernel is made inside a function that closes over a digest of them all, which is part of the key.
"""

import hashlib
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from octavo.kv import row_codec

__all__ = ["per_codec_pair"]

Kernel = Callable[..., None]


def _sources(rows_class: type) -> set[Path]:
    """The file of a row codec and those of what it imports from its own package."""
    codec = sys.modules[rows_class.__module__]
    named = {codec.__name__} | {getattr(value, "__module__", None) or "" for value in vars(codec).values()}
    ours = (name for name in named if name.partition(".")[0] == codec.__name__.partition(".")[0])
    return {Path(file) for name in ours if (file := getattr(sys.modules[name], "__file__", None))}


@cache
def _digest(*classes: type) -> int:
    sources = {Path(row_codec.__file__), *Path(__file__).parent.glob("*.py")}.union(*map(_sources, classes))
    text = b"".join(file.read_bytes() for file in sorted(sources))
    return int.from_bytes(hashlib.sha256(text).digest()[:7])


def per_codec_pair(make: Callable[[int], Kernel]) -> Callable[[type, type], Kernel]:
    """`make(digest)` -> the kernel; the result gives the kernel of (key class, value class), made once a process."""
    made = cache(make)

    def kernel_of(key: type, value: type) -> Kernel:
        return made(_digest(key, value))

    return kernel_of
