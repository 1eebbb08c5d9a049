"""Decode inputs in Triton: one launch, where torch has one for every tensor."""

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from octavo.kernels.ahead import launch

if TYPE_CHECKING:
    from octavo.kernels.inputs import DecodeInputs

__all__ = ["bring", "bring_kernel"]

_BLOCK = 128


# all of these change from step to step
@triton.jit(do_not_specialize=["count", "width", "given_stride", "into_stride"])
def bring_kernel(
    tokens, positions, slots, context, tables, to_tokens, to_positions, to_slots, to_context, to_tables, count, width,
    given_stride, into_stride, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (rows, padding included)."""
    row = tl.program_id(0)
    if row < count:
        tl.store(to_tokens + row, tl.load(tokens + row))
        tl.store(to_positions + row, tl.load(positions + row))
        tl.store(to_slots + row, tl.load(slots + row))
        tl.store(to_context + row, tl.load(context + row))
        for begin in range(0, width, BLOCK):
            at = begin + tl.arange(0, BLOCK)
            pages = tl.load(tables + row.to(tl.int64) * given_stride + at, mask=at < width)
            tl.store(to_tables + row.to(tl.int64) * into_stride + at, pages, mask=at < width)
    else:
        tl.store(to_slots + row, tl.full((), -1, tl.int64))
        tl.store(to_context + row, 1)


def bring(given: "DecodeInputs", into: "DecodeInputs", size: int) -> None:
    launch(
        bring_kernel, (size,), given.tokens, given.positions, given.slots, given.context, given.tables, into.tokens,
        into.positions, into.slots, into.context, into.tables, len(given.tokens), given.tables.shape[1],
        given.tables.stride(0), into.tables.stride(0), BLOCK=_BLOCK, num_warps=1,
    )  # fmt: skip
