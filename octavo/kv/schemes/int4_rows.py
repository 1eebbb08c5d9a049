"""The row codec of `int4`: dimension j in the low nibble of byte j, j + dim / 2 in its high one."""

from typing import NamedTuple

import numpy as np
from numba import njit

from octavo.kv.row_codec import from_half, register
from octavo.kv.schemes.integer_rows import BYTES, measure, put_half, widen4

__all__ = ["Int4Rows"]


class Int4Rows(NamedTuple):
    codes: int
    scale: int
    mid: int


@njit(inline="always")
def _nibble(number, mid, inverse):
    code = np.rint((number - mid) * inverse)
    return np.int32(min(max(code, np.float32(-8.0)), np.float32(7.0))) & np.int32(15)


def encode(rows, block, token, vector, dim):
    scale_bits, mid_bits, mid, inverse = measure(vector, dim, 16)
    half = dim // 2
    codes = block[rows.codes + token * half : rows.codes + (token + 1) * half]
    for i in range(half):
        low, high = _nibble(vector[i], mid, inverse), _nibble(vector[i + half], mid, inverse)
        codes[i] = np.uint8(low | (high << np.int32(4)))
    put_half(block, rows.scale + 2 * token, scale_bits)
    put_half(block, rows.mid + 2 * token, mid_bits)


def decode(rows, block, first, count, dim, tile):
    half, eight = dim // 2, np.float32(8.0)
    codes = block[rows.codes + first * half : rows.codes + (first + count) * half]
    scales = block[rows.scale + 2 * first : rows.scale + 2 * (first + count)].view(np.uint16)
    mids = block[rows.mid + 2 * first : rows.mid + 2 * (first + count)].view(np.uint16)
    for t in range(count):
        scale, mid = from_half(scales[t]), from_half(mids[t])
        source, target = np.int64(codes.ctypes.data) + t * half, np.int64(tile[t].ctypes.data)
        whole = half // BYTES * BYTES
        for i in range(0, whole, BYTES):
            widen4(source + i, target + 4 * i, target + 4 * (i + half), scale, mid)
        for i in range(whole, half):  # (x ^ 8) - 8: two's complement of four bits
            byte = codes[t * half + i]
            tile[t, i] = (np.float32(np.int32((byte & 15) ^ 8)) - eight) * scale + mid
            tile[t, i + half] = (np.float32(np.int32((byte >> 4) ^ 8)) - eight) * scale + mid


register(Int4Rows, encode, decode)
