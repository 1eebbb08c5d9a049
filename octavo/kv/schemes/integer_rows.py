"""Midpoint integer quantization of one vector in Numba: `integer.quantize`, operation for operation in fp32."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from octavo.kv.row_codec import from_half, instruction, to_half

__all__ = ["BYTES", "measure", "put_half", "widen4", "widen8"]

BYTES = 16
"""how many code bytes `widen8` and `widen4` take at once"""


@njit(error_model="numpy")
def measure(vector, dim, levels):
    """fp32 `[dim]` -> the bits of scale and midpoint, the midpoint, and 1 / scale (0 where the scale is 0)."""
    high = low = vector[0]
    for i in range(1, dim):
        high = max(high, vector[i])
        low = min(low, vector[i])
    half, top = np.float32(0.5), levels // 2
    half_step = (high * half - low * half) * np.float32(1.0 / (levels - 1))
    mid_bits = to_half(high * half + low * half + half_step)
    mid = from_half(mid_bits)
    widest = max((high - mid) * np.float32(1.0 / (top - 1)), (mid - low) * np.float32(1.0 / top))
    scale_bits = to_half(widest)
    step = from_half(scale_bits)
    inverse = np.float32(1.0) / step if step > 0 else np.float32(0.0)
    return scale_bits, mid_bits, mid, inverse


@njit(inline="always")
def put_half(block, offset, bits):
    """Write the 16 bits of an fp16 at a byte offset that is even."""
    block[offset : offset + 2].view(np.uint16)[0] = bits


def _splat(builder: Any, scalar: Any) -> Any:
    empty = ir.Constant(ir.VectorType(scalar.type, BYTES), ir.Undefined)
    one = builder.insert_element(empty, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), BYTES), [0] * BYTES))


def _load(builder: Any, address: Any) -> Any:
    pointer = builder.inttoptr(address, ir.VectorType(ir.IntType(8), BYTES).as_pointer())
    return builder.load(pointer, align=1)


def _write(builder: Any, codes: Any, scale: Any, mid: Any, address: Any) -> None:
    """int8 codes -> `codes * scale + mid` at an address; the product is exact, so contracting changes no bit."""
    numbers = builder.sitofp(codes, ir.VectorType(ir.FloatType(), BYTES))
    scaled = builder.fmul(numbers, _splat(builder, scale), flags=("contract",))
    numbers = builder.fadd(scaled, _splat(builder, mid), flags=("contract",))
    builder.store(numbers, builder.inttoptr(address, numbers.type.as_pointer()), align=4)


@instruction
def widen8(typingctx: Any, source: Any, target: Any, scale: Any, mid: Any) -> Any:
    """16 signed bytes at an address -> 16 numbers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target, scale, mid = args
        _write(builder, _load(builder, source), scale, mid, target)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.float32), codegen


@instruction
def widen4(typingctx: Any, source: Any, low: Any, high: Any, scale: Any, mid: Any) -> Any:
    """16 bytes of two signed nibbles -> 16 numbers at `low` and 16 at `high`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, low, high, scale, mid = args
        pairs = _load(builder, source)
        four = ir.Constant(pairs.type, [4] * BYTES)
        _write(builder, builder.ashr(builder.shl(pairs, four), four), scale, mid, low)
        _write(builder, builder.ashr(pairs, four), scale, mid, high)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.float32, types.float32), codegen
