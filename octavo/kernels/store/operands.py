"""What store's matrix kernel multiplies queries, keys and values with."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from octavo.kv.transform import SideTransform, hadamard

__all__ = ["Operand", "stands_for_keys", "stands_for_queries", "stands_for_values"]


@dataclass(frozen=True, eq=False)
class Operand:
    """What is encoded of x is factor * (x @ matrix) - shift."""

    matrix: Tensor
    """`[G, D, D]`, or `[1, D, D]` where KV heads share it, contiguous"""
    shift: Tensor | None = None
    """fp32 `[G, D]`"""
    factor: float = 1.0

    @property
    def shared(self) -> bool:
        return len(self.matrix) == 1


@lru_cache(maxsize=32)
def _unfitted(width: int, rotated: bool, dtype: torch.dtype, device: torch.device) -> Operand:
    """The rotation, or nothing, as a matrix of `dtype`; in 16 bits its signs, which are exact, and a factor."""
    matrix = torch.from_numpy(hadamard(width)) if rotated else torch.eye(width)
    factor = 1.0 if dtype == torch.float32 else float(matrix.abs().max())
    signs = matrix if dtype == torch.float32 else (matrix / factor).round()
    return Operand(signs.to(device, dtype)[None].contiguous(), None, factor)


def stands_for_queries(side: SideTransform, q: Tensor) -> Operand:
    """`side` of the keys, q `[T, H, D]`"""
    if side.back is None:
        return _unfitted(q.shape[2], side.rotated, torch.float32, q.device)
    return Operand(side.back.contiguous())


def stands_for_keys(side: SideTransform, k: Tensor) -> Operand:
    if side.matrix is None:
        return _unfitted(k.shape[2], side.rotated, torch.float32, k.device)
    return Operand(side.matrix.contiguous(), None if side.shift is None else side.shift.contiguous())


def stands_for_values(side: SideTransform, v: Tensor, exact: tuple[torch.dtype, ...]) -> Operand:
    """`exact`: types in which values go to the tensor cores as they come, if their matrix is exact in the type too."""
    if side.matrix is None:
        return _unfitted(v.shape[2], side.rotated, v.dtype if v.dtype in exact else torch.float32, v.device)
    return stands_for_keys(side, v)
