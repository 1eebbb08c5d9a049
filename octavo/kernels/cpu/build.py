"""Compiled kernels that stay on disk: one per pair of row codecs, thrown away when any source of theirs changes.

Numba keys its disk cache on the argument types and on the kernel's own file, not on the files of the functions that it
calls. So a kernel is made inside a function that closes over a digest of them all, which is part of the key.
"""

import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path

from octavo.kv import row_codec

__all__ = ["per_codec_pair"]

Kernel = Callable[..., None]


@cache
def _digest(*classes: type) -> int:
    files = {Path(row_codec.__file__)}
    folders = {Path(__file__).parent} | {Path(inspect.getfile(rows_class)).parent for rows_class in classes}
    sources = sorted(files | {file for folder in folders for file in folder.glob("*.py")})
    text = b"".join(file.read_bytes() for file in sources)
    return int.from_bytes(hashlib.sha256(text).digest()[:7])


def per_codec_pair(make: Callable[[int], Kernel]) -> Callable[[type, type], Kernel]:
    """`make(digest)` -> the kernel; the result gives the kernel of (key class, value class), made once a process."""
    made = cache(make)

    def kernel_of(key: type, value: type) -> Kernel:
        return made(_digest(key, value))

    return kernel_of
