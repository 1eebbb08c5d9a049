"""The end of split attention: the last program of a row block to finish adds up what all its splits left."""

import triton
import triton.language as tl

__all__ = ["merge_row_block"]


@triton.jit
def merge_row_block(
    total, peak, mass, partial, stats, arrived, row, live, split, splits, total_rows, ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Leave this split's share in memory; return whether it was the last, and the sum over all splits if so. How many
    there are is known at run time only: both loops take several at once, so that their loads do not wait in turn."""
    AT_ONCE: tl.constexpr = triton.cdiv(32, ROWS)
    at = row[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(partial + split * total_rows * WIDTH + at, total, mask=live[:, None])
    tl.store(stats + (split * total_rows + row) * 2, peak, mask=live)
    tl.store(stats + (split * total_rows + row) * 2 + 1, mass, mask=live)
    tl.debug_barrier()
    last = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") == splits - 1
    if last:
        tl.store(arrived, 0)
        peak, mass = tl.full([ROWS], -1.0e30, tl.float32), tl.zeros([ROWS], tl.float32)
        for first in range(0, splits, 4 * AT_ONCE):
            s = first + tl.arange(0, 4 * AT_ONCE)[None, :]
            each, there = (s * total_rows + row[:, None]) * 2, live[:, None] & (s < splits)
            peaks = tl.load(stats + each, mask=there, other=-1.0e30, cache_modifier=".cg")
            masses = tl.load(stats + each + 1, mask=there, other=0.0, cache_modifier=".cg")
            top = tl.maximum(peak, tl.max(peaks, 1))
            mass = mass * tl.exp2(peak - top) + tl.sum(masses * tl.exp2(peaks - top[:, None]), 1)
            peak = top
        total = tl.zeros([ROWS, WIDTH], tl.float32)
        for first in range(0, splits, AT_ONCE):
            for more in tl.static_range(AT_ONCE):
                other, there = first + more, live & (row * 0 + first + more < splits)
                at_other = other * total_rows * WIDTH + at
                part = tl.load(partial + at_other, mask=there[:, None], other=0.0, cache_modifier=".cg")
                one = tl.load(stats + (other * total_rows + row) * 2, mask=there, other=-1.0e30, cache_modifier=".cg")
                total += part * tl.exp2(one - peak)[:, None]
    return last, total, mass
