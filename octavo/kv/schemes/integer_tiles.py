"""What the tile codecs of the integer schemes share: reading bytes in tensor-core order, and midpoint quantization.

A tile is loaded in the very order in which one warp's tensor-core operands hold it, up to 16 bytes a lane and load,
so that nothing passes through shared memory on the way. Lane = g * 4 + c throughout. BYTES is a row's bytes, padded to
a power of two; LIVE what of it is stored.
"""

import triton
import triton.language as tl

from octavo.kv.lanes import lane_grid, lanes_last

__all__ = [
    "arrange_weights", "bytes_pointer", "halves_of", "key_bytes", "key_operand", "key_places", "quantize",
    "value_bytes", "value_operand", "value_places",
]  # fmt: skip

_HALF_MAX = tl.constexpr(65504.0)
_ROW_RUN = tl.constexpr(4)  # rows of a value operand that one lane holds side by side


@triton.jit
def bytes_pointer(head, OFFSET: tl.constexpr):
    return (head + OFFSET).to(tl.pointer_type(tl.int8))


@triton.jit
def key_places(place, BYTES: tl.constexpr):
    """The byte at each place of the contracted axis of `key_operand`."""
    RUN: tl.constexpr = 16 if BYTES >= 64 else BYTES // 4
    return place // (4 * RUN) * (4 * RUN) + place // 8 % 4 * RUN + place % (4 * RUN) // 32 * 8 + place % 8


@triton.jit
def key_bytes(head, OFFSET: tl.constexpr, token, LIVE: tl.constexpr, BYTES: tl.constexpr, TILE: tl.constexpr):
    """int8 `[TILE / 8 * U, g, c, RUN]`: row 8 i + g, byte 4 RUN u + RUN c + j at [i U + u, g, c, j]."""
    RUN: tl.constexpr = 16 if BYTES >= 64 else BYTES // 4
    UNITS: tl.constexpr = BYTES // (4 * RUN)
    x, g, c, j = lane_grid(TILE // 8 * UNITS, 8, RUN)
    row = token + x // UNITS * 8 + g
    byte = x % UNITS * (4 * RUN) + c * RUN + j
    pointer = bytes_pointer(head, OFFSET) + (row * LIVE + byte)
    if LIVE == BYTES:
        tile = tl.load(pointer)
    else:
        tile = tl.load(pointer, mask=(row >= 0) & (byte < LIVE), other=0)
    return lanes_last(tile)


@triton.jit
def key_operand(tile, BYTES: tl.constexpr, TILE: tl.constexpr):
    """`key_bytes`' order -> `[BYTES, TILE]`: byte `key_places[k]` of row n at [k, n]."""
    RUN: tl.constexpr = 16 if BYTES >= 64 else BYTES // 4
    UNITS: tl.constexpr = BYTES // (4 * RUN)
    split = tile.reshape(TILE // 8, UNITS, 8, 4, RUN // 8, 8)
    return split.permute(1, 4, 3, 5, 0, 2).reshape(BYTES, TILE)


@triton.jit
def value_places(place, BYTES: tl.constexpr):
    """The byte at each place of the free axis of `value_operand`."""
    RUN: tl.constexpr = 16 if BYTES >= 128 else BYTES // 8
    return place // (8 * RUN) * (8 * RUN) + place % 8 * RUN + place % (8 * RUN) // 8


@triton.jit
def arrange_weights(weights, ROWS: tl.constexpr, TILE: tl.constexpr):
    """The columns of `[ROWS, TILE]` in the order of the columns of `value_operand`."""
    split = weights.reshape(ROWS, TILE // (4 * _ROW_RUN), _ROW_RUN // 2, 4, 2)
    return split.permute(0, 1, 3, 2, 4).reshape(ROWS, TILE)


@triton.jit
def value_bytes(
    head, OFFSET: tl.constexpr, token, ODD: tl.constexpr, LIVE: tl.constexpr, BYTES: tl.constexpr, TILE: tl.constexpr
):
    """int8 `[TILE / 8 * U, g, c, RUN]`: row 8 i + 2 c + ODD, byte 8 RUN u + RUN g + j at [i U + u, g, c, j]."""
    RUN: tl.constexpr = 16 if BYTES >= 128 else BYTES // 8
    UNITS: tl.constexpr = BYTES // (8 * RUN)
    x, g, c, j = lane_grid(TILE // 8 * UNITS, 8, RUN)
    row = token + x // UNITS * 8 + c * 2 + ODD
    byte = x % UNITS * (8 * RUN) + g * RUN + j
    pointer = bytes_pointer(head, OFFSET) + (row * LIVE + byte)
    if LIVE == BYTES:
        tile = tl.load(pointer)
    else:
        tile = tl.load(pointer, mask=(row >= 0) & (byte < LIVE), other=0)
    return lanes_last(tile)


@triton.jit
def value_operand(even, odd, BYTES: tl.constexpr, TILE: tl.constexpr):
    """Two tiles in `value_bytes`' order -> `[BYTES, TILE]`: byte `value_places[n]` at [n, k], rows in lane order."""
    RUN: tl.constexpr = 16 if BYTES >= 128 else BYTES // 8
    UNITS: tl.constexpr = BYTES // (8 * RUN)
    pair = tl.join(even, odd).reshape(TILE // (4 * _ROW_RUN), _ROW_RUN // 2, UNITS, 8, 4, RUN, 2)
    return pair.permute(2, 5, 3, 0, 4, 1, 6).reshape(BYTES, TILE)


@triton.jit
def halves_of(pair):
    """int32 holding {fp16, fp16} -> two fp16 tensors, low half first."""
    return tl.inline_asm_elementwise(
        "mov.b32 {$0, $1}, $2;", "=h,=h,r", [pair], dtype=(tl.float16, tl.float16), is_pure=True, pack=1
    )


@triton.jit
def round_half_even(x):
    """|x| < 2^22"""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def quantize(x, high, low, BITS: tl.constexpr):
    """fp32 `[N, 2, HALF]` and its extremes `[N]` -> codes (fp32 whole numbers), scale and mid (fp16 `[N]`), as
    `integer.quantize` does it."""
    levels: tl.constexpr = 2.0 ** (BITS - 1)
    half_step = (high * 0.5 - low * 0.5) * (1.0 / (2.0 * levels - 1.0))
    mid = tl.minimum(tl.maximum(high * 0.5 + low * 0.5 + half_step, -_HALF_MAX), _HALF_MAX).to(tl.float16)
    middle = mid.to(tl.float32)
    reach = tl.maximum((high - middle) * (1.0 / (levels - 1.0)), (middle - low) * (1.0 / levels))
    scale = tl.minimum(reach, _HALF_MAX).to(tl.float16)
    step = scale.to(tl.float32)
    inverse = tl.where(step > 0, tl.div_rn(1.0, tl.maximum(step, 5.9604644775390625e-08)), 0.0)
    codes = (x - middle[:, None, None]) * inverse[:, None, None]
    codes = round_half_even(tl.minimum(tl.maximum(codes, -levels), levels - 1.0))
    return codes, scale, mid
