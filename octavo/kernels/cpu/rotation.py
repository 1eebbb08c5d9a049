"""Rows times a matrix in place: butterflies for the Hadamard rotation of powers of two, else a dense product."""

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from octavo.kernels.cpu.memory import floats
from octavo.kernels.cpu.vectors import LANES, hadamard16, product
from octavo.kv.transform import hadamard

__all__ = ["BUTTERFLY", "NONE", "add", "matrix_of", "padded_matrices", "subtract", "turn"]

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


def padded_matrices(matrices: Tensor) -> Tensor:
    """fp32 `[G, D, D]` -> the same with rows padded with zeros to a multiple of LANES, as `turn` reads them."""
    dim = matrices.shape[-1]
    return torch.nn.functional.pad(matrices.float().cpu(), (0, -dim % LANES)).contiguous()


@njit(error_model="numpy")
def subtract(address, constants, dim):
    """Take fp32 `[dim]` at `constants` from the vector at `address`."""
    row, constant = floats(address, dim), floats(constants, dim)
    for i in range(dim):
        row[i] -= constant[i]


@njit(error_model="numpy")
def add(address, constants, dim):
    """Add fp32 `[dim]` at `constants` to the vector at `address`."""
    row, constant = floats(address, dim), floats(constants, dim)
    for i in range(dim):
        row[i] += constant[i]


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
