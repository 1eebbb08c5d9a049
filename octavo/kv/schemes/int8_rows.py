"""The row codec of `int8`."""

from typing import NamedTuple

import numpy as np

from octavo.kv.row_codec import from_half, register
from octavo.kv.schemes.integer_rows import BYTES, measure, put_half, widen8

__all__ = ["Int8Rows"]


class Int8Rows(NamedTuple):
    codes: int
    scale: int
    mid: int


def encode(rows, block, token, vector, dim):
    scale_bits, mid_bits, mid, inverse = measure(vector, dim, 256)
    codes = block[rows.codes + token * dim : rows.codes + (token + 1) * dim].view(np.int8)
    for i in range(dim):
        code = np.rint((vector[i] - mid) * inverse)
        codes[i] = np.int8(np.int32(min(max(code, np.float32(-128.0)), np.float32(127.0))))
    put_half(block, rows.scale + 2 * token, scale_bits)
    put_half(block, rows.mid + 2 * token, mid_bits)


def decode(rows, block, first, count, dim, tile):
    codes = block[rows.codes + first * dim : rows.codes + (first + count) * dim].view(np.int8)
    scales = block[rows.scale + 2 * first : rows.scale + 2 * (first + count)].view(np.uint16)
    mids = block[rows.mid + 2 * first : rows.mid + 2 * (first + count)].view(np.uint16)
    for t in range(count):
        scale, mid = from_half(scales[t]), from_half(mids[t])
        source, target = np.int64(codes.ctypes.data) + t * dim, np.int64(tile[t].ctypes.data)
        whole = dim // BYTES * BYTES
        for i in range(0, whole, BYTES):
            widen8(source + i, target + 4 * i, scale, mid)
        for i in range(whole, dim):
            tile[t, i] = np.float32(codes[t * dim + i]) * scale + mid


register(Int8Rows, encode, decode)
