"""Store: RoPE -> transform -> encode -> write into pages. The only way into the cache."""

from torch import Tensor

from octavo.base.errors import OctavoError
from octavo.base.table import Table
from octavo.kernels.rows import Rope, Rows
from octavo.kernels.store import reference
from octavo.kv.pool import LayerPages

__all__ = ["STORE_IMPLS", "check_finite", "store"]


def _cpu(q: Tensor, k: Tensor, v: Tensor, rope: Rope | None, rows: Rows, layer: LayerPages) -> Tensor:
    from octavo.kernels.store import cpu  # Numba loads only where it is used

    return cpu.store(q, k, v, rope, rows, layer)


def _triton(q: Tensor, k: Tensor, v: Tensor, rope: Rope | None, rows: Rows, layer: LayerPages) -> Tensor:
    from octavo.kernels.store import triton

    return triton.store(q, k, v, rope, rows, layer)


STORE_IMPLS = Table("store impl", {"triton": _triton, "cpu": _cpu, "reference": reference.store})


def store(q: Tensor, k: Tensor, v: Tensor, rope: Rope | None, rows: Rows, layer: LayerPages, impl: str) -> Tensor:
    """Store T new tokens and return the queries as attention wants them.

    q `[T, H, D]`, k and v `[T, G, D]`: after any q/k norm, before RoPE, any float dtype. Everything from RoPE to the
    codes is computed in fp32, never from a rounded copy. Returns fp32 `[T, H, D]`: q after RoPE and
    the counterpart of what is done to the layer's keys (transform.py). `rope=None` leaves positions out (NoPE layers).
    """
    return STORE_IMPLS[impl](q, k, v, rope, rows, layer)


def check_finite(k: Tensor, v: Tensor, layer: int) -> None:
    """Raise OctavoError where a key or value to be stored, `[T, G, D]`, is NaN or infinite, naming layer and head."""
    for side, vectors in (("key", k), ("value", v)):
        bad = ~vectors.isfinite().all(-1)  # [T, G]
        if bad.any():
            token, head = bad.nonzero()[0].tolist()
            raise OctavoError(
                f"layer {layer}, kv head {head}: the {side} of token {token} of this step is not finite",
                hint="the weights or the compute dtype overflow; try --dtype float32",
            )
