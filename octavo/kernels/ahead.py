"""How a Triton kernel is launched; and a mode in which launches only compile, many at once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["compile_ahead", "launch"]

_ONLY_COMPILE: ContextVar[bool] = ContextVar("only_compile", default=False)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **kwargs: Any) -> None:
    """Run a `triton.jit` function over `grid`; inside `compile_ahead`, only see to it that it will be compiled."""
    kernel.run(*args, grid=grid, warmup=_ONLY_COMPILE.get(), **kwargs)


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
