"""How a Triton kernel is launched; and a mode in which launches only compile, many at once."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch

__all__ = ["COUNTERS", "compile_ahead", "counters", "follows", "launch", "runs_gluon"]

COUNTERS = 1 << 20

_ONLY_COMPILE: ContextVar[bool] = ContextVar("only_compile", default=False)
_EARLY_SINCE = (9, 0)
_GLUON_KNOWN = ["3", "6"]


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **kwargs: Any) -> None:
    """Run a `triton.jit` function over `grid`; inside `compile_ahead`, only see to it that it will be compiled."""
    kernel.run(*args, grid=grid, warmup=_ONLY_COMPILE.get(), **kwargs)


@cache
def follows(device: torch.device) -> dict[str, bool]:
    """The arguments of a launch whose kernel has EARLY and calls `after_previous` (triton_early.py): it is set up while
    the one before it runs, where the device can do so."""
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _EARLY_SINCE
    return {"EARLY": able, "launch_pdl": able} if os.environ.get("TRITON_INTERPRET") != "1" else {"EARLY": False}


@cache
def runs_gluon(device: torch.device) -> bool:
    """Whether the kernels in Gluon run there. They were made for Hopper, and Triton calls Gluon experimental: it has to
    be the version that they were tested with."""
    import triton

    known = triton.__version__.split(".")[:2] == _GLUON_KNOWN and os.environ.get("TRITON_INTERPRET") != "1"
    return known and device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


def counters(on: torch.Tensor) -> torch.Tensor:
    """int32 zeros `[COUNTERS]` for programs that share something, of which the last to finish puts it together. Every
    launch leaves zeros behind, and launches on one stream count in turn; each stream has its own."""
    return _counters(on.device, torch.cuda.current_stream(on.device).cuda_stream if on.is_cuda else 0)


@cache
def _counters(device: torch.device, stream: int) -> torch.Tensor:
    return torch.zeros(COUNTERS, dtype=torch.int32, device=device)


@contextmanager
def compile_ahead(threads: int) -> Iterator[None]:
    """Inside, launches compute nothing (what they would write stays undefined) and return at once; their kernels are
    compiled by `threads` threads, and on leaving all are there."""
    from triton import AsyncCompileMode

    with ThreadPoolExecutor(threads) as executor, AsyncCompileMode(executor):
        token = _ONLY_COMPILE.set(True)
        try:
            yield
        finally:
            _ONLY_COMPILE.reset(token)
