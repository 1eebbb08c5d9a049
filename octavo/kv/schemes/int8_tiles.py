"""The tile codec of `int8` for Triton: keys go to the int8 tensor cores as they lie, values become fp16 exactly."""

import triton
import triton.language as tl

from octavo.kv.schemes.integer_tiles import (
    arrange_weights,
    bytes_pointer,
    halves_of,
    key_bytes,
    key_operand,
    key_places,
    quantize,
    value_bytes,
    value_operand,
    value_places,
)
from octavo.kv.tile_codec import TileCodec

__all__ = ["INT8_TILES"]

# Four codes of an even row and of the odd row after it -> per dimension {fp16 even, fp16 odd}. With its sign bit
# flipped a code is u = code + 128, and the fp16 whose bits are 0x6400 | u is 1024 + u.
_PAIRS = tl.constexpr("""{
.reg .b32 e, o, x, y, m, z;
mov.b32 m, 0x64646464;
mov.b32 z, 0x64806480;
xor.b32 e, $4, 0x80808080;
xor.b32 o, $5, 0x80808080;
prmt.b32 x, e, o, 0x5140;
prmt.b32 y, e, o, 0x7362;
prmt.b32 e, x, m, 0x4140;
prmt.b32 o, x, m, 0x4342;
sub.rn.f16x2 $0, e, z;
sub.rn.f16x2 $1, o, z;
prmt.b32 e, y, m, 0x4140;
prmt.b32 o, y, m, 0x4342;
sub.rn.f16x2 $2, e, z;
sub.rn.f16x2 $3, o, z;
}""")


@triton.jit
def _key_dims(place, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    return key_places(place, WIDTH)


@triton.jit
def _keys_of(codes, BYTES: tl.constexpr, TILE: tl.constexpr, PLAIN: tl.constexpr):
    return key_operand(codes, BYTES, TILE)


@triton.jit
def _load_keys(
    head, OFFSET: tl.constexpr, token, limit, HEAD: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    COMPUTE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    return _keys_of(key_bytes(head, OFFSET, token, HEAD, WIDTH, TILE), WIDTH, TILE, PLAIN)


@triton.jit
def _value_dims(place, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    return value_places(place, WIDTH)


@triton.jit
def _values_of(even, odd, BYTES: tl.constexpr, TILE: tl.constexpr, COMPUTE: tl.constexpr, PLAIN: tl.constexpr):
    if PLAIN:
        first, second = even.to(COMPUTE), odd.to(COMPUTE)
    else:
        pair = tl.inline_asm_elementwise(_PAIRS, "=r,=r,=r,=r,r,r", [even, odd], dtype=tl.int32, is_pure=False, pack=4)
        first, second = halves_of(pair)
    return value_operand(first, second, BYTES, TILE)


@triton.jit
def _load_values(
    head, OFFSET: tl.constexpr, token, limit, HEAD: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    COMPUTE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    even = value_bytes(head, OFFSET, token, 0, HEAD, WIDTH, TILE)
    odd = value_bytes(head, OFFSET, token, 1, HEAD, WIDTH, TILE)
    return _values_of(even, odd, WIDTH, TILE, COMPUTE, PLAIN)


@triton.jit
def load_rows(
    head, OFFSET: tl.constexpr, token, limit, HEAD: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    COMPUTE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    dim, row = tl.arange(0, WIDTH)[None, :], tl.arange(0, TILE)[:, None]
    at = (token + row) * HEAD + dim
    return tl.load(bytes_pointer(head, OFFSET) + at, mask=(dim < HEAD) & (row < limit), other=0).to(COMPUTE)


@triton.jit
def _store(
    head, token, x, high, low, keep, HEAD: tl.constexpr, DATA: tl.constexpr, SCALE: tl.constexpr,
    MID: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    half = tl.arange(0, x.shape[2])[None, None, :]
    codes, scale, mid = quantize(x, high, low, 8)
    at = token[:, None, None] * HEAD + tl.arange(0, 2)[None, :, None] * (HEAD // 2) + half
    live = (half < HEAD // 2) & keep[:, None, None] & (at >= 0)
    tl.store(bytes_pointer(head, DATA)[:, None, None] + at, codes.to(tl.int8), mask=live)
    tl.store((head + SCALE).to(tl.pointer_type(tl.float16)) + token, scale, mask=keep)
    tl.store((head + MID).to(tl.pointer_type(tl.float16)) + token, mid, mask=keep)


INT8_TILES = TileCodec(
    _key_dims, _load_keys, _value_dims, _load_values, arrange_weights, _store,
    key_compute="int8", value_compute="float16", affine=True, one_warp=True, flipped=True,
    load_rows=load_rows, keys_of=_keys_of, values_of=_values_of,
)  # fmt: skip
