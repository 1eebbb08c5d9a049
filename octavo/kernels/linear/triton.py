"""Products of few rows in Triton: all the time goes into reading the weight, once, as fast as memory gives it.

A program takes BLOCK_N rows of the weight and runs along them; what it will read next is on its way to shared memory,
STAGES tiles deep.
"""

import os
from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.activation.triton import gate_tile
from octavo.kernels.ahead import counters, follows, launch
from octavo.kernels.linear import FEW_ROWS
from octavo.kernels.triton_early import after_previous

__all__ = ["Tiling", "choose_tiling", "linear", "linear_kernel", "takes"]

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_SHARED_BYTES = 200 << 10  # what the deepest tiling below takes of a multiprocessor; smaller chips are left to cuBLAS


@dataclass(frozen=True)
class Tiling:
    """Rows of the weight a program, columns a tile, programs that share a row, warps, and tiles under way."""

    block_n: int
    block_k: int
    splits: int
    warps: int
    stages: int


def choose_tiling(rows: int, features: int) -> Tiling:
    """For x of `rows` rows (one of FEW_ROWS) and a weight of `features`. Measured on an H200
    in whole decode steps of a 7B, and on an H100 product by product (benchmarks/linear.py)."""
    if features <= 4096:  # about a program a multiprocessor: each needs much under way
        return {16: Tiling(16, 512, 1, 1, 4), 32: Tiling(64, 128, 2, 4, 6), 64: Tiling(32, 128, 1, 4, 6)}[rows]
    if features <= 8192:
        return {16: Tiling(16, 512, 1, 1, 3), 32: Tiling(16, 256, 1, 1, 4), 64: Tiling(32, 128, 1, 4, 6)}[rows]
    return {16: Tiling(16, 512, 1, 1, 3), 32: Tiling(64, 128, 1, 4, 3), 64: Tiling(128, 128, 1, 4, 4)}[rows]


@triton.jit
def _sum_of_splits(total, partial, arrived, tile, split, at, real, rows, features, SPLITS: tl.constexpr):
    """Leave what a split has; of the programs that share a block the last to arrive adds up what all left, in order."""
    tl.store(partial + split.to(tl.int64) * rows * features + at, total, mask=real)
    tl.debug_barrier()
    last = tl.atomic_add(arrived + tile, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
    if last:
        tl.store(arrived + tile, 0)
        total = tl.zeros([total.shape[0], total.shape[1]], tl.float32)
        for one in tl.static_range(SPLITS):
            left = partial + tl.cast(one, tl.int64) * rows * features + at
            total += tl.load(left, mask=real, other=0.0, cache_modifier=".cg")
    return last, total


# the number of rows changes with every step
@triton.jit(do_not_specialize=["rows"])
def linear_kernel(
    x, weight, bias, out, partial, arrived, rows, features, width, x_stride,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, STAGES: tl.constexpr,
    EVEN_N: tl.constexpr, EVEN_K: tl.constexpr, BIAS: tl.constexpr, GATED: tl.constexpr, COMPUTE: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """x `[rows, width]`, weight `[features, width]`, out `[rows, features]`; grid (blocks of features, SPLITS). With
    splits, of the programs of a block the last to finish adds up what all left, in order. GATED: the weight is
    gate above up, a block takes rows of both in turn, and out is `[rows, features / 2]`."""
    tile, split = tl.program_id(0), tl.program_id(1)
    n, m, k = tile * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, ROWS), tl.arange(0, BLOCK_K)
    if GATED:
        n = tl.where(n < features, n // 2 + n % 2 * (features // 2), features)
    share = tl.cdiv(tl.cdiv(width, BLOCK_K), SPLITS) * BLOCK_K
    begin = split * share
    end = tl.minimum(begin + share, width)
    row = tl.where(n < features, n, 0).to(tl.int64) if not EVEN_N else n.to(tl.int64)
    after_previous(EARLY)
    live = m < rows
    weights = weight + row[:, None] * width + k[None, :]
    inputs = x + m[:, None].to(tl.int64) * x_stride + k[None, :]
    total = tl.zeros([ROWS, BLOCK_N], tl.float32)
    for at in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        if EVEN_K:
            w = tl.load(weights + at, eviction_policy="evict_first")
            v = tl.load(inputs + at, mask=live[:, None], other=0.0)
        else:
            inside = (k < width - at)[None, :]
            w = tl.load(weights + at, mask=inside, other=0.0, eviction_policy="evict_first")
            v = tl.load(inputs + at, mask=live[:, None] & inside, other=0.0)
        total = tl.dot(v.to(COMPUTE), w.to(COMPUTE).T, total, input_precision="ieee")
    real = live[:, None] & (n < features)[None, :]
    at_out = m[:, None].to(tl.int64) * features + n[None, :]
    last = True
    if SPLITS > 1:
        last, total = _sum_of_splits(total, partial, arrived, tile, split, at_out, real, rows, features, SPLITS)
    if last:
        if BIAS:
            total += tl.load(bias + n, mask=n < features, other=0.0).to(tl.float32)[None, :]
        y = total.to(out.dtype.element_ty)
        if GATED:
            _store_gated(y, out, tile, rows, features // 2)
        else:
            tl.store(out + at_out, y, mask=real)


@triton.jit
def _store_gated(y, out, tile, rows, features):
    """`silu_mul` of y `[ROWS, BLOCK_N]`, whose columns are of gate and of up in turn; rounded as there."""
    ROWS: tl.constexpr = y.shape[0]
    COUNT: tl.constexpr = y.shape[1] // 2
    gate, up = tl.split(y.reshape(ROWS, COUNT, 2))
    m, n = tl.arange(0, ROWS), tile * COUNT + tl.arange(0, COUNT)
    at = m[:, None].to(tl.int64) * features + n[None, :]
    tl.store(out + at, gate_tile(gate, up), mask=(m < rows)[:, None] & (n < features)[None, :])


@cache
def _roomy(device: torch.device) -> bool:
    if device.type != "cuda":
        return _INTERPRETED
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin >= _SHARED_BYTES


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether a product is the kernel's: few rows of 16 bits, laid so that it can be read 16 bytes at a time."""
    return (
        0 < len(x) <= FEW_ROWS[-1] and weight.element_size() == 2 and weight.shape[1] % 64 == 0
        and weight.is_contiguous() and x.stride(1) == 1 and x.stride(0) % 8 == 0 and _roomy(weight.device)
    )  # fmt: skip


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, tiling: Tiling | None = None, gated: bool = False
) -> Tensor:  # fmt: skip
    """As `octavo.kernels.linear.linear`, or, `gated`, as `gated_linear`, where `takes` says so; with a `tiling` for
    more rows, too."""
    (rows, width), features = x.shape, len(weight)
    block = next((size for size in FEW_ROWS if size >= rows), triton.next_power_of_2(rows))
    cut = tiling or choose_tiling(block, features)
    out = x.new_empty(rows, features // 2 if gated else features)
    partial = x.new_empty(cut.splits * rows * features, dtype=torch.float32) if cut.splits > 1 else out
    launch(
        linear_kernel, (triton.cdiv(features, cut.block_n), cut.splits), x, weight, weight if bias is None else bias,
        out, partial, counters(x), rows, features, width, x.stride(0),
        ROWS=block, BLOCK_N=cut.block_n, BLOCK_K=cut.block_k, SPLITS=cut.splits, STAGES=cut.stages,
        EVEN_N=features % cut.block_n == 0, EVEN_K=width % cut.block_k == 0, BIAS=bias is not None, GATED=gated,
        COMPUTE=tl.float32 if _INTERPRETED else _COMPUTE[x.dtype],
        num_warps=cut.warps, num_stages=cut.stages, **follows(x.device),
    )  # fmt: skip
    return out


_COMPUTE = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
