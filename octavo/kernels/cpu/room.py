"""The scratch memory of one thread of attention."""

from typing import NamedTuple

from numba import njit

from octavo.kernels.cpu.memory import aligned
from octavo.kernels.cpu.vectors import LANES, TILE

__all__ = ["PANEL", "Room", "lay_out"]

PANEL = 6
"""queries whose scores are in flight together"""


class Room(NamedTuple):
    """One thread's scratch, as addresses. R = queries of a block, S = D rounded up to LANES."""

    queries: int  # [R, D] scaled
    left: int  # [2, R, W] the correction's a and b, scaled
    keys: int  # [S, 64] a K tile, transposed
    tile: int  # [64, S] the tile just decoded
    scores: int  # [6, 64]
    keep: int  # [6] factors
    ones: int  # [6]
    spare: int  # [S]
    state: int  # [R, 2] maximum and sum of the split
    sums: int  # [R, S]
    total_state: int  # [R, 2]
    total: int  # [R, S]


@njit(error_model="numpy")
def lay_out(base, rows, dim, width):
    """The scratch of one thread from `base` on, and where it ends."""
    padded = (dim + LANES - 1) // LANES * LANES
    queries = aligned(base)
    left = aligned(queries + 4 * rows * dim)
    keys = aligned(left + 8 * rows * width)
    tile = keys + 4 * padded * TILE
    scores = tile + 4 * padded * TILE
    keep = scores + 4 * PANEL * TILE
    spare = keep + 128
    state = aligned(spare + 4 * padded)
    sums = aligned(state + 8 * rows)
    total_state = aligned(sums + 4 * padded * rows)
    total = aligned(total_state + 8 * rows)
    room = Room(queries, left, keys, tile, scores, keep, keep + 64, spare, state, sums, total_state, total)
    return room, total + 4 * padded * rows
