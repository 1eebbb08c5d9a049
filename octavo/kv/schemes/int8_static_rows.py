"""The row codec of `int8-static`."""

from typing import NamedTuple

import numpy as np

from octavo.kv.row_codec import register

__all__ = ["Int8StaticRows"]


class Int8StaticRows(NamedTuple):
    codes: int


def encode(rows, block, token, vector, dim):
    codes = block[rows.codes + token * dim : rows.codes + (token + 1) * dim].view(np.int8)
    for i in range(dim):
        code = np.rint(vector[i])
        codes[i] = np.int8(np.int32(min(max(code, np.float32(-127.0)), np.float32(127.0))))


def decode(rows, block, first, count, dim, tile):
    codes = block[rows.codes + first * dim : rows.codes + (first + count) * dim].view(np.int8)
    for t in range(count):
        row, out = codes[t * dim : (t + 1) * dim], tile[t]
        for i in range(dim):
            out[i] = np.float32(row[i])


register(Int8StaticRows, encode, decode)
