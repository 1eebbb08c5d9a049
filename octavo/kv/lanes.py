"""Tensors whose elements fall to the lanes of one warp as the tensor cores want them: lane = g * 4 + c.

Triton deals a loaded tensor out to lanes by the order of its axes, and that order differs between its versions; only
speed depends on it, results do not.
"""

import triton
import triton.language as tl

__all__ = ["lane_grid", "lanes_last"]

_MAJOR_MINOR = tuple(int(part) for part in triton.__version__.split(".")[:2])
_LANES_FIRST = tl.constexpr(_MAJOR_MINOR < (3, 7))  # 3.6 deals from the first axis on, 3.9 from the last one back


@triton.jit
def lane_grid(OUTER: tl.constexpr, ROWS: tl.constexpr, RUN: tl.constexpr):
    """Index tensors x < OUTER, g < ROWS, c < 4, j < RUN that broadcast to a tensor to load; then call `lanes_last`."""
    if _LANES_FIRST:
        x = tl.arange(0, OUTER)[None, None, :, None]
        c = tl.arange(0, 4)[:, None, None, None]
    else:
        x = tl.arange(0, OUTER)[:, None, None, None]
        c = tl.arange(0, 4)[None, None, :, None]
    return x, tl.arange(0, ROWS)[None, :, None, None], c, tl.arange(0, RUN)[None, None, None, :]


@triton.jit
def lanes_last(tile):
    """What was loaded over a `lane_grid` -> `[x, g, c, j]`."""
    if _LANES_FIRST:
        tile = tile.permute(2, 1, 0, 3)
    return tile
