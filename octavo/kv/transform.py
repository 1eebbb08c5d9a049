"""The Hadamard rotation: one exactly orthonormal matrix for Q, K and V, in fp32.

`q . k = (q H) . (k H)` for any orthonormal H, and rotated vectors have their outliers spread over all
dimensions, so a per-vector scale wastes fewer levels. Widths: 2^k directly (Sylvester); 2^k * m where a Paley
matrix of order m exists (80 = 4 * 20, 96 = 8 * 12, 112 = 4 * 28); otherwise blocks of the largest power of two
that divides the width.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["hadamard", "rotate", "unrotate"]


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))


def _jacobsthal(prime: int) -> np.ndarray:
    squares = {(x * x) % prime for x in range(1, prime)}
    symbol = np.array([0] + [1 if x in squares else -1 for x in range(1, prime)])
    index = np.arange(prime)
    return symbol[(index[:, None] - index[None, :]) % prime]


def _paley(order: int) -> np.ndarray | None:
    """A Hadamard matrix of `order` by Paley's first or second construction, or None."""
    if order % 4 == 0 and _is_prime(order - 1) and (order - 1) % 4 == 3:
        core = np.zeros((order, order), int)
        core[0, 1:], core[1:, 0], core[1:, 1:] = 1, -1, _jacobsthal(order - 1)
        return np.eye(order, dtype=int) + core
    half = order // 2
    if order % 4 == 0 and _is_prime(half - 1) and (half - 1) % 4 == 1:
        core = np.zeros((half, half), int)
        core[0, 1:], core[1:, 0], core[1:, 1:] = 1, 1, _jacobsthal(half - 1)
        return np.kron(core, [[1, 1], [1, -1]]) + np.kron(np.eye(half, dtype=int), [[1, -1], [-1, -1]])
    return None


@lru_cache(maxsize=8)
def hadamard(width: int) -> np.ndarray:
    """The `[width, width]` orthonormal matrix of the rotation, fp32; a vector is rotated as `x @ H`."""
    two_part = width & -width
    core, size = np.ones((1, 1), int), 1
    while size <= two_part and size <= 8:  # the smallest power of two that completes an order Paley knows
        found = np.ones((1, 1), int) if two_part == width else _paley(width // two_part * size)
        if found is not None:
            core = found
            break
        size *= 2
    blocks = width // (two_part // (size if core.shape[0] > 1 else 1) * core.shape[0])
    sylvester = np.ones((1, 1), int)
    while sylvester.shape[0] * core.shape[0] * blocks < width:
        sylvester = np.kron(sylvester, [[1, 1], [1, -1]])
    block = np.kron(sylvester, core)
    matrix = np.kron(np.eye(blocks), block / np.sqrt(block.shape[0]))
    assert matrix.shape == (width, width), f"hadamard({width}) came out as {matrix.shape}"
    return matrix.astype(np.float32)


@lru_cache(maxsize=16)
def _matrix(width: int, device: "torch.device") -> "Tensor":
    """`hadamard(width)` where it is used: a copy from the host for every call would stop a device that runs ahead."""
    import torch

    return torch.from_numpy(hadamard(width)).to(device)


def rotate(vectors: "Tensor") -> "Tensor":
    """fp32 `[..., D]` -> `x @ H`, fp32."""
    return vectors.float() @ _matrix(vectors.shape[-1], vectors.device)


def unrotate(vectors: "Tensor") -> "Tensor":
    """The inverse of `rotate`: `x @ H^T`."""
    return vectors.float() @ _matrix(vectors.shape[-1], vectors.device).T
