"""What the system says that this process takes, after what nobody holds was given back to it."""

import ctypes
import gc
import os
import sys

import torch

from octavo.base.device import process_memory_bytes
from octavo.base.errors import UsageError

__all__ = ["let_go", "process_mib", "trim"]


def process_mib() -> float:
    """MiB that back this process. Raises UsageError where the system does not say."""
    found = process_memory_bytes()
    if found is None:
        raise UsageError(f"{sys.platform} does not say what a process takes: no /proc/self/status")
    return found / 2**20


def let_go(device: str) -> None:
    """Give back what nobody holds, to the system."""
    gc.collect()
    trim()
    if device != "cpu":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def trim() -> None:
    """Have the C library return what was freed; only glibc needs to be told."""
    if os.name == "posix" and sys.platform == "linux":
        give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if give_back is not None:
            give_back(0)
