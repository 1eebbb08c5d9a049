"""The Hadamard rotation of rows in place: butterflies for powers of two, a dense product for other widths."""

from functools import cache
from typing import Any

import numpy as np
from numba import njit

from octavo.kernels.cpu.memory import floats
from octavo.kernels.cpu.vectors import LANES, hadamard16, product
from octavo.kv.transform import hadamard

__all__ = ["BUTTERFLY", "NONE", "matrix_of", "turn"]

NONE, BUTTERFLY = -1, 0
"""What `turn` takes instead of the address of a matrix."""


@cache
def _dense(dim: int, inverse: bool) -> tuple[int, Any]:
    """`[dim, dim rounded up to LANES]`, H or its transpose, zero padded; the address and what keeps it alive."""
    matrix = np.zeros((dim, -(-dim // LANES) * LANES), np.float32)
    matrix[:, :dim] = hadamard(dim).T if inverse else hadamard(dim)
    return matrix.ctypes.data, matrix


def matrix_of(rotated: bool, dim: int, inverse: bool = False) -> int:
    """The third argument of `turn`. The matrices live as long as the process."""
    if not rotated:
        return NONE
    return BUTTERFLY if dim & (dim - 1) == 0 else _dense(dim, inverse)[0]


@njit(error_model="numpy")
def _butterfly(row, address, dim):
    """fp32 `[dim]` in place, dim a power of two: x @ H, the steps of the fast Walsh-Hadamard transform in order."""
    step = 1
    if dim >= LANES:
        for i in range(0, dim, LANES):
            hadamard16(address + 4 * i)
        step = LANES
    while step < dim:
        for begin in range(0, dim, 2 * step):
            low, high = row[begin : begin + step], row[begin + step : begin + 2 * step]
            for i in range(step):
                a, b = low[i], high[i]
                low[i], high[i] = a + b, a - b
        step *= 2
    norm = np.float32(1.0 / np.sqrt(dim))
    for i in range(dim):
        row[i] *= norm


@njit(error_model="numpy")
def turn(address, stride, rows, dim, matrix, spare):
    """Rotate `rows` fp32 vectors that lie `stride` bytes apart; each must have room up to a multiple of LANES.

    `matrix` is NONE, BUTTERFLY or an address; `spare` the address of room for one padded vector.
    """
    if matrix == NONE:
        return
    padded = (dim + LANES - 1) // LANES * LANES
    none, one = np.int64(0), np.int64(1)  # a literal argument would be compiled apart
    for r in range(rows):
        row = floats(address + r * stride, dim)
        if matrix == BUTTERFLY:
            _butterfly(row, address + r * stride, dim)
        else:
            product(address + r * stride, none, matrix, 4 * padded, spare, none, one, padded, dim, none)
            turned = floats(spare, dim)
            for i in range(dim):
                row[i] = turned[i]
