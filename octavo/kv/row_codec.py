"""The seam between a scheme and the CPU kernels: how one stored row is written and a tile of rows is read, in Numba.

A scheme names a class, `row_codec="package.module:Class"`: a NamedTuple of ints with one field per plane, the byte
offset of that plane inside a head's block. Its module gives two plain functions and registers them:

    register(Int8Rows, encode, decode)

    encode(rows, block, token, vector, dim)         vector fp32 [dim] -> row `token` of the block
    decode(rows, block, first, count, dim, tile)    rows [first, first + count) -> tile fp32 [>= count, >= dim]

`block` is one head's bytes, uint8 `[head_bytes]`, contiguous; slice it and `.view(dtype)`. Numba picks the functions by
the type of `rows`, so that a kernel that calls `encode_row` and `decode_tile` names no format, and its compiled code
can be kept on disk. Must agree with the scheme's own torch encode and decode to the last bit.
"""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from octavo.kv.scheme import Scheme

__all__ = ["decode_tile", "encode_row", "from_half", "instruction", "load_rows", "register", "rows_of", "to_half"]

instruction: Any = intrinsic
"""Numba's decorator for functions made of LLVM instructions, untyped: it hides their first parameter from callers."""


def encode_row(rows: Any, block: Any, token: int, vector: Any, dim: int) -> None:
    """Write one fp32 vector as row `token`. Only callable from compiled code."""
    raise NotImplementedError


def decode_tile(rows: Any, block: Any, first: int, count: int, dim: int, tile: Any) -> None:
    """Read rows `[first, first + count)` into the first `count` rows of an fp32 tile. Only from compiled code."""
    raise NotImplementedError


def register(rows_class: type, encode: Callable[..., None], decode: Callable[..., None]) -> None:
    """Make `encode_row` and `decode_tile` mean these two functions wherever `rows` is a `rows_class`."""

    @overload(encode_row, jit_options={"error_model": "numpy"})
    def pick_encode(rows, block, token, vector, dim):
        return encode if getattr(rows, "instance_class", None) is rows_class else None

    @overload(decode_tile, jit_options={"error_model": "numpy"})
    def pick_decode(rows, block, first, count, dim, tile):
        return decode if getattr(rows, "instance_class", None) is rows_class else None


@cache
def load_rows(row_codec: str) -> type:
    """`"package.module:Class"` -> the class, its codec registered."""
    module, _, name = row_codec.partition(":")
    return getattr(importlib.import_module(module), name)


def rows_of(scheme: Scheme, slots: Any) -> tuple[int, ...]:
    """The scheme's NamedTuple, filled with the offsets of its planes (`PageLayout.key_slots` or `.value_slots`)."""
    assert scheme.row_codec is not None, f"the scheme {scheme.name} has no row codec"
    return load_rows(scheme.row_codec)(*(slot.offset for slot in slots))


@instruction
def _half_bits(typingctx: Any, number: Any) -> Any:
    """fp32 -> the bits of the nearest fp16, ties to even."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), codegen


@instruction
def from_half(typingctx: Any, bits: Any) -> Any:
    """The bits of an fp16 (uint16) -> fp32, exactly."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), codegen


@njit(inline="always")
def to_half(number):
    """fp32 -> the bits of the nearest finite fp16, ties to even, saturating at 65504; NaN stays NaN."""
    peak = np.float32(65504.0)
    if number > peak:
        number = peak
    if number < -peak:
        number = -peak
    return _half_bits(np.float32(number))
