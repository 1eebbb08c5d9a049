"""The inputs of a decode step brought to where a recorded step reads them."""

from dataclasses import dataclass

from torch import Tensor

from octavo.base.table import Table
from octavo.kernels.inputs import reference

__all__ = ["BRING_IMPLS", "DecodeInputs", "bring"]


@dataclass(frozen=True)
class DecodeInputs:
    """One new token of each of R sequences (rows.py says what they mean)."""

    tokens: Tensor
    """int64 `[R]`"""
    positions: Tensor
    slots: Tensor
    context: Tensor
    """int32 `[R]`"""
    tables: Tensor
    """int32 `[R, M]`"""


def _triton(given: DecodeInputs, into: DecodeInputs, size: int) -> None:
    from octavo.kernels.inputs import triton  # Triton loads only where it is used

    triton.bring(given, into, size)


BRING_IMPLS = Table("inputs impl", {"triton": _triton, "cpu": reference.bring, "reference": reference.bring})


def bring(given: DecodeInputs, into: DecodeInputs, size: int, impl: str) -> None:
    """Copy R rows into the first of `into`, whose tables are as wide or wider, and make padding of those up to `size`:
    stored nowhere (slot -1), a context of one token. Padding keeps the page ids, positions and tokens that were there:
    any will do."""
    assert len(given.tokens) <= size <= len(into.tokens), f"{len(given.tokens)} rows, {size} with padding"
    assert given.tables.shape[1] <= into.tables.shape[1], f"{given.tables.shape[1]} pages, {into.tables.shape[1]} fit"
    BRING_IMPLS[impl](given, into, size)
