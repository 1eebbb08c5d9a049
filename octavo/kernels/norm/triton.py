"""RMS norm in Triton: one launch, every number read once. A program takes one row, or several narrow ones."""

import triton
import triton.language as tl
from torch import Tensor, empty_like

from octavo.kernels.ahead import follows, launch
from octavo.kernels.triton_early import after_previous

__all__ = ["add_norm", "norm", "norm_kernel"]

_NUMBERS = 1024  # a program's at least: narrow rows share one


# the number of rows changes with every step
@triton.jit(do_not_specialize=["rows"])
def norm_kernel(
    hidden, delta, weight, total, out, rows, stride, eps, PARTS: tl.constexpr, WIDTH: tl.constexpr,
    PER_TOKEN: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(rows / ROWS)). Row r of hidden begins at r // PER_TOKEN * stride + r % PER_TOKEN * WIDTH; those of
    delta, total and out follow each other. What is normed is the sum as it was rounded. PARTS: of delta, which are
    added up in fp32 and rounded first; 0 without a delta."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    dim = tl.arange(0, BLOCK)[None, :]
    live = (row < rows) & (dim < WIDTH)
    at = row.to(tl.int64) * WIDTH + dim
    start = (row // PER_TOKEN).to(tl.int64) * stride + row % PER_TOKEN * WIDTH
    factor = tl.load(weight + dim, mask=dim < WIDTH, other=0.0).to(tl.float32)
    after_previous(EARLY)
    x = tl.load(hidden + start + dim, mask=live, other=0.0)
    if PARTS > 0:
        added = tl.load(delta + at, mask=live, other=0.0).to(tl.float32)
        for part in tl.static_range(1, PARTS):
            added += tl.load(delta + tl.cast(part, tl.int64) * rows * WIDTH + at, mask=live, other=0.0)
        x = (x.to(tl.float32) + added.to(x.dtype).to(tl.float32)).to(x.dtype)
        tl.store(total + at, x, mask=live)
    wide = x.to(tl.float32)
    scaled = wide * tl.rsqrt(tl.sum(wide * wide, 1) * (1.0 / WIDTH) + eps)[:, None]
    tl.store(out + at, (scaled.to(x.dtype).to(tl.float32) * factor).to(x.dtype), mask=live)


def _launch(hidden: Tensor, delta: Tensor | None, weight: Tensor, total: Tensor, out: Tensor, eps: float) -> None:
    width = hidden.shape[-1]
    per_token = hidden.shape[1] if hidden.dim() == 3 else 1
    block = triton.next_power_of_2(width)
    together = max(1, _NUMBERS // block)
    rows = hidden.numel() // width
    parts = 0 if delta is None else len(delta) if delta.dim() == 3 else 1
    launch(
        norm_kernel, (triton.cdiv(rows, together),), hidden, hidden if delta is None else delta, weight, total, out,
        rows, hidden.stride(0), eps, PARTS=parts, WIDTH=width, PER_TOKEN=per_token, BLOCK=block,
        ROWS=together, num_warps=min(16, max(4, block // 256)), enable_fp_fusion=False, **follows(hidden.device),
    )  # fmt: skip


def _rows_of(hidden: Tensor) -> Tensor:
    """Rows of a token contiguous; a slice of a fused QKV output is taken as it is."""
    inner = (hidden.shape[2], 1) if hidden.dim() == 3 else (1,)
    return hidden if hidden.stride()[1:] == inner else hidden.contiguous()


def norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    hidden = _rows_of(hidden)
    out = hidden.new_empty(hidden.shape)
    _launch(hidden, None, weight, out, out, eps)
    return out


def add_norm(hidden: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    hidden, delta = hidden.contiguous(), delta.contiguous()
    total, out = empty_like(hidden), empty_like(hidden)
    _launch(hidden, delta, weight, total, out, eps)
    return total, out
