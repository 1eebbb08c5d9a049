"""The Hadamard rotation: one exactly orthonormal matrix for Q, K and V, in fp32.

`q . k = (q H) . (k H)` for any orthonormal H, and rotated vectors have their outliers spread over all
dimensions, so a per-vector scale wastes fewer levels. Widths: 2^k directly (Sylvester); 2^k * m where a Paley
matrix of order m exists (80 = 4 * 20, 96 = 8 * 12, 112 = 4 * 28); otherwise blocks of the largest power of two
that divides the width.

`SideTransform` is the general form, one invertible matrix and one constant per KV head, of which the rotation is the
case without numbers of its own. Fitted transforms (fit.py) are matrices with the rotation multiplied in.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["PLAIN", "ROTATION", "SideTransform", "hadamard", "rotate", "unrotate"]


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


@dataclass(frozen=True, eq=False)
class SideTransform:
    """What is done to the keys, or the values, of one layer before they are encoded, and what undoes it. Exact in real
    arithmetic, whatever the numbers are:

        keys     k' = k A - c     q' = q B, B = A^-T        q' . k' = q . k - q' . c: the same taken from every score
        values   v' = v A - c     out = (out' + c) B, B = A^-1       the weights of a softmax sum to 1

    Without a matrix A and B are the rotation, or nothing.
    """

    rotated: bool
    matrix: "Tensor | None" = None
    """A, fp32 `[G, D, D]`"""
    back: "Tensor | None" = None
    """B, fp32 `[G, D, D]`"""
    shift: "Tensor | None" = None
    """c, fp32 `[G, D]`; only beside a matrix"""

    @property
    def changes(self) -> bool:
        """Whether it does anything at all."""
        return self.rotated or self.matrix is not None

    def stored(self, vectors: "Tensor") -> "Tensor":
        """What is encoded of keys or values `[T, G, D]`, fp32."""
        if self.matrix is None:
            return rotate(vectors) if self.rotated else vectors.float()
        turned = _by_head(vectors, self.matrix)
        return turned if self.shift is None else turned - self.shift

    def query(self, q: "Tensor") -> "Tensor":
        """Queries `[T, H, D]` as they meet stored keys, fp32."""
        if self.back is None:
            return rotate(q) if self.rotated else q.float()
        return _by_head(q, self.back)

    def output(self, mixed: "Tensor") -> "Tensor":
        """Weighted sums of stored values `[T, H, D]` -> of the values themselves, fp32."""
        if self.back is None:
            return unrotate(mixed) if self.rotated else mixed.float()
        if self.shift is not None:
            mixed = mixed + self.shift.repeat_interleave(mixed.shape[1] // len(self.shift), dim=0)
        return _by_head(mixed, self.back)


def _by_head(vectors: "Tensor", matrices: "Tensor") -> "Tensor":
    """`[T, N, D]`, N a multiple of G, times its KV head's matrix of `[G, D, D]`."""
    grouped = vectors.float().unflatten(1, (len(matrices), -1)).permute(1, 0, 2, 3)  # [G, T, N / G, D]
    return (grouped.flatten(1, 2) @ matrices).view(grouped.shape).permute(1, 0, 2, 3).flatten(1, 2)


PLAIN, ROTATION = SideTransform(False), SideTransform(True)
