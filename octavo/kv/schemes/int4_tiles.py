"""The tile codec of `int4` for Triton: one AND leaves 16 times a signed code for the int8 tensor cores.

Low nibbles are the first half of the dimensions, high nibbles the second: so are the two halves of a tile.
"""

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

__all__ = ["INT4_TILES"]

_SIXTEENFOLD = tl.constexpr("""{
.reg .b32 t;
shl.b32 t, $2, 4;
and.b32 $0, t, 0xF0F0F0F0;
and.b32 $1, $2, 0xF0F0F0F0;
}""")

# Four bytes of an even row and of the odd row after it -> per byte {fp16 even, fp16 odd} of its low nibble ($0-$3) and
# of its high one ($4-$7). With its sign bit flipped a nibble is u = code + 8; the fp16 0x6400 | u is 1024 + u, and
# 0x6400 | u << 4 is 1024 + 16 u.
_PAIRS = tl.constexpr("""{
.reg .b32 x, y, t, low, high, z, s, f;
mov.b32 z, 0x64086408;
mov.b32 s, 0x2C002C00;
mov.b32 f, 0xD480D480;
prmt.b32 x, $8, $9, 0x5410;
prmt.b32 y, $8, $9, 0x7632;
lop3.b32 low, x, 0x000F000F, 0x64086408, 0x6A;
lop3.b32 high, x, 0x00F000F0, 0x64806480, 0x6A;
sub.rn.f16x2 $0, low, z;
fma.rn.f16x2 $4, high, s, f;
shr.u32 t, x, 8;
lop3.b32 low, t, 0x000F000F, 0x64086408, 0x6A;
lop3.b32 high, t, 0x00F000F0, 0x64806480, 0x6A;
sub.rn.f16x2 $1, low, z;
fma.rn.f16x2 $5, high, s, f;
lop3.b32 low, y, 0x000F000F, 0x64086408, 0x6A;
lop3.b32 high, y, 0x00F000F0, 0x64806480, 0x6A;
sub.rn.f16x2 $2, low, z;
fma.rn.f16x2 $6, high, s, f;
shr.u32 t, y, 8;
lop3.b32 low, t, 0x000F000F, 0x64086408, 0x6A;
lop3.b32 high, t, 0x00F000F0, 0x64806480, 0x6A;
sub.rn.f16x2 $3, low, z;
fma.rn.f16x2 $7, high, s, f;
}""")


@triton.jit
def _key_dims(place, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    byte = key_places(place % (WIDTH // 2), WIDTH // 2)
    return tl.where(byte < HEAD // 2, byte + place // (WIDTH // 2) * (HEAD // 2), -1)


@triton.jit
def _keys_of(packed, BYTES: tl.constexpr, TILE: tl.constexpr, PLAIN: tl.constexpr):
    if PLAIN:
        low, high = packed << 4, packed & -16
    else:
        low, high = tl.inline_asm_elementwise(
            _SIXTEENFOLD, "=r,=r,r", [packed], dtype=(tl.int8, tl.int8), is_pure=False, pack=4
        )
    low, high = key_operand(low, BYTES, TILE), key_operand(high, BYTES, TILE)
    return tl.join(low, high).permute(2, 0, 1).reshape(2 * BYTES, TILE)


@triton.jit
def _load_keys(
    head, OFFSET: tl.constexpr, token, limit, HEAD: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    COMPUTE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    return _keys_of(key_bytes(head, OFFSET, token, HEAD // 2, WIDTH // 2, TILE), WIDTH // 2, TILE, PLAIN)


@triton.jit
def _value_dims(place, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    byte = value_places(place % (WIDTH // 2), WIDTH // 2)
    return tl.where(byte < HEAD // 2, byte + place // (WIDTH // 2) * (HEAD // 2), -1)


@triton.jit
def _values_of(even, odd, BYTES: tl.constexpr, TILE: tl.constexpr, COMPUTE: tl.constexpr, PLAIN: tl.constexpr):
    if PLAIN:
        low = value_operand((even << 4 >> 4).to(COMPUTE), (odd << 4 >> 4).to(COMPUTE), BYTES, TILE)
        high = value_operand((even >> 4).to(COMPUTE), (odd >> 4).to(COMPUTE), BYTES, TILE)
    else:
        low, high = tl.inline_asm_elementwise(
            _PAIRS, "=r,=r,=r,=r,=r,=r,=r,=r,r,r", [even, odd], dtype=(tl.int32, tl.int32), is_pure=False, pack=4
        )
        first, second = halves_of(low)
        low = value_operand(first, second, BYTES, TILE)
        first, second = halves_of(high)
        high = value_operand(first, second, BYTES, TILE)
    return tl.join(low, high).permute(2, 0, 1).reshape(2 * BYTES, TILE)


@triton.jit
def _load_values(
    head, OFFSET: tl.constexpr, token, limit, HEAD: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    COMPUTE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    even = value_bytes(head, OFFSET, token, 0, HEAD // 2, WIDTH // 2, TILE)
    odd = value_bytes(head, OFFSET, token, 1, HEAD // 2, WIDTH // 2, TILE)
    return _values_of(even, odd, WIDTH // 2, TILE, COMPUTE, PLAIN)


@triton.jit
def _load_rows(
    head, OFFSET: tl.constexpr, token, limit, HEAD: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    COMPUTE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    dim, row = tl.arange(0, WIDTH)[None, :], tl.arange(0, TILE)[:, None]
    at = (token + row) * (HEAD // 2) + dim % (HEAD // 2)
    packed = tl.load(bytes_pointer(head, OFFSET) + at, mask=(dim < HEAD) & (row < limit), other=0)
    return tl.where(dim < HEAD // 2, packed << 4 >> 4, packed >> 4).to(COMPUTE)


@triton.jit
def _store(
    head, token, x, high, low, keep, HEAD: tl.constexpr, DATA: tl.constexpr, SCALE: tl.constexpr,
    MID: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    half = tl.arange(0, x.shape[2])
    codes, scale, mid = quantize(x, high, low, 4)
    first, second = codes.to(tl.int32).permute(0, 2, 1).split()
    packed = (first & 15) | (second << 4)
    live = (half < HEAD // 2)[None, :] & keep[:, None]
    at = token[:, None] * (HEAD // 2) + half[None, :]
    tl.store(bytes_pointer(head, DATA)[:, None] + at, packed.to(tl.int8), mask=live)
    tl.store((head + SCALE).to(tl.pointer_type(tl.float16)) + token, scale, mask=keep)
    tl.store((head + MID).to(tl.pointer_type(tl.float16)) + token, mid, mask=keep)


INT4_TILES = TileCodec(
    _key_dims, _load_keys, _value_dims, _load_values, arrange_weights, _store,
    key_compute="int8", value_compute="float16", affine=True, key_factor=0.0625, one_warp=True, flipped=True,
    load_rows=_load_rows, keys_of=_keys_of, values_of=_values_of,
)  # fmt: skip
