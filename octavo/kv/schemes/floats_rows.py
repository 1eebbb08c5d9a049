"""The row codecs of the float schemes: one plane, no metadata."""

from typing import NamedTuple

import numpy as np
from numba import njit

from octavo.kv.row_codec import from_half, register, to_half

__all__ = ["Bf16Rows", "Fp8Rows", "Fp16Rows", "Fp32Rows"]

_BF16_PEAK = np.float32(3.3895313892515355e38)
_FP8_PEAK = np.float32(448.0)


class Fp32Rows(NamedTuple):
    data: int


def encode_fp32(rows, block, token, vector, dim):
    block[rows.data + 4 * token * dim : rows.data + 4 * (token + 1) * dim].view(np.float32)[:] = vector[:dim]


def decode_fp32(rows, block, first, count, dim, tile):
    data = block[rows.data + 4 * first * dim : rows.data + 4 * (first + count) * dim].view(np.float32)
    for t in range(count):
        row, out = data[t * dim : (t + 1) * dim], tile[t]
        for i in range(dim):
            out[i] = row[i]


class Bf16Rows(NamedTuple):
    data: int


@njit(inline="always")
def _to_bf16(number):
    """The bits of the nearest finite bf16, ties to even; NaN stays NaN."""
    bits = np.float32(min(max(number, -_BF16_PEAK), _BF16_PEAK)).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(rounded) if number == number else np.uint16(0x7FC0)


def encode_bf16(rows, block, token, vector, dim):
    data = block[rows.data + 2 * token * dim : rows.data + 2 * (token + 1) * dim].view(np.uint16)
    for i in range(dim):
        data[i] = _to_bf16(vector[i])


def decode_bf16(rows, block, first, count, dim, tile):
    data = block[rows.data + 2 * first * dim : rows.data + 2 * (first + count) * dim].view(np.uint16)
    for t in range(count):
        row, out = data[t * dim : (t + 1) * dim], tile[t].view(np.uint32)
        for i in range(dim):
            out[i] = np.uint32(row[i]) << np.uint32(16)


class Fp16Rows(NamedTuple):
    data: int


def encode_fp16(rows, block, token, vector, dim):
    data = block[rows.data + 2 * token * dim : rows.data + 2 * (token + 1) * dim].view(np.uint16)
    for i in range(dim):
        data[i] = to_half(vector[i])


def decode_fp16(rows, block, first, count, dim, tile):
    data = block[rows.data + 2 * first * dim : rows.data + 2 * (first + count) * dim].view(np.uint16)
    for t in range(count):
        row, out = data[t * dim : (t + 1) * dim], tile[t]
        for i in range(dim):
            out[i] = from_half(row[i])


class Fp8Rows(NamedTuple):
    data: int


@njit(inline="always")
def _to_fp8(number):
    """The bits of the nearest e4m3, ties to even, saturating at 448; NaN stays NaN."""
    bits = np.float32(number).view(np.uint32)
    sign = np.uint32((bits >> np.uint32(24)) & np.uint32(0x80))
    size = min(abs(number), _FP8_PEAK)
    if size < np.float32(2.0**-6):  # subnormal: steps of 2^-9
        code = np.uint32(np.rint(size * np.float32(512.0)))
    else:
        bits = np.float32(size).view(np.uint32)
        bits = bits + np.uint32(0x7FFFF) + ((bits >> np.uint32(20)) & np.uint32(1))  # round the 20 bits that go
        code = (bits >> np.uint32(20)) - np.uint32(120 << 3)  # exponent bias 127 -> 7
    return np.uint8(sign | code) if number == number else np.uint8(0x7F)


def encode_fp8(rows, block, token, vector, dim):
    data = block[rows.data + token * dim : rows.data + (token + 1) * dim]
    for i in range(dim):
        data[i] = _to_fp8(vector[i])


def decode_fp8(rows, block, first, count, dim, tile):
    data = block[rows.data + first * dim : rows.data + (first + count) * dim]
    for t in range(count):
        row, out = data[t * dim : (t + 1) * dim], tile[t]
        for i in range(dim):
            byte = np.uint32(row[i])
            size = np.uint32((byte & np.uint32(0x7F)) << np.uint32(20)).view(np.float32) * np.float32(2.0**120)
            size = size if (byte & np.uint32(0x7F)) != np.uint32(0x7F) else np.float32(np.nan)
            out[i] = -size if byte & np.uint32(0x80) else size


register(Fp32Rows, encode_fp32, decode_fp32)
register(Bf16Rows, encode_bf16, decode_bf16)
register(Fp16Rows, encode_fp16, decode_fp16)
register(Fp8Rows, encode_fp8, decode_fp8)
