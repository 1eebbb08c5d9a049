"""Paged attention over encoded pages, prefill and decode alike. It only ever reads the cache."""

from torch import Tensor

from octavo.base.table import Table
from octavo.kernels.attention import reference
from octavo.kernels.rows import Rows, ScoreCorrection
from octavo.kv.pool import LayerPages

__all__ = ["ATTENTION_IMPLS", "DENSE_TOKENS", "ROW_BLOCKS", "attend"]

ROW_BLOCKS = (8, 16, 32, 64)
"""query rows of a KV head (new tokens times heads of its group) that the GPU's kernels are compiled for, padded up to
one of these; of more than the last a sequence takes several blocks"""

DENSE_TOKENS = 16384
"""tokens of context that are decoded at once for the GPU's dense kernel, at most: its scratch is all their vectors in
16 bits. Where it reads pages as they lie there is neither scratch nor limit"""


def _cpu(
    q: Tensor, rows: Rows, layer: LayerPages, softmax_scale: float, window: int | None,
    correction: ScoreCorrection | None,
) -> Tensor:  # fmt: skip
    from octavo.kernels.attention import cpu  # Numba loads only where it is used

    return cpu.attend(q, rows, layer, softmax_scale, window, correction)


def _triton(
    q: Tensor, rows: Rows, layer: LayerPages, softmax_scale: float, window: int | None,
    correction: ScoreCorrection | None,
) -> Tensor:  # fmt: skip
    from octavo.kernels.attention import triton

    return triton.attend(q, rows, layer, softmax_scale, window, correction)


ATTENTION_IMPLS = Table("attention impl", {"triton": _triton, "cpu": _cpu, "reference": reference.attend})


def attend(
    q: Tensor,
    rows: Rows,
    layer: LayerPages,
    impl: str,
    softmax_scale: float,
    window: int | None = None,
    correction: ScoreCorrection | None = None,
) -> Tensor:
    """Causal attention of T queries over what their rows' pages decode to.

    q fp32 `[T, H, D]` as `store` returned it; H is a multiple of the layer's KV heads G and query head h reads KV head
    h // (H / G). `window` lets a query at position p see keys in (p - window, p]. `correction` adds a term to the
    scaled scores. Returns `[T, H, D]` in the model's own basis: what was done to V is undone here. It is fp32, or what
    fp32 rounds to in `rows.compute`.
    """
    return ATTENTION_IMPLS[impl](q, rows, layer, softmax_scale, window, correction)
