"""Store in Triton: RoPE -> rotation -> encode -> planes, one launch for q, k and v.

Fitted transforms, and rotations of a width that is no power of two, are products with a matrix (triton_matrix.py).
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.ahead import follows, launch
from octavo.kernels.rows import Rope, Rows
from octavo.kernels.store.operands import stands_for_keys, stands_for_queries, stands_for_values
from octavo.kernels.store.triton_matrix import store_matrix_kernel
from octavo.kernels.store.triton_wide import extremes, store_wide_kernel
from octavo.kernels.triton_early import after_previous
from octavo.kv.layout import PlaneSlot
from octavo.kv.pool import LayerPages
from octavo.kv.tile_codec import tiles_of
from octavo.kv.transform import SideTransform

__all__ = ["Cut", "MatrixCut", "choose_cut", "choose_matrix_cut", "store", "store_kernel"]

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_EXACT = (torch.float16,) if _INTERPRETED else (torch.float16, torch.bfloat16)
"""types whose products tensor cores add up in fp32; the interpreter multiplies the bits of bf16"""


@triton.jit
def _load(source, token, head, stride, live, HEAD: tl.constexpr, HALF: tl.constexpr):
    """fp32 `[N, 2, HALF]`: dimension h * HEAD / 2 + i at [h, i]."""
    half = tl.arange(0, HALF)[None, None, :]
    dim = tl.arange(0, 2)[None, :, None] * (HEAD // 2) + half
    at = token.to(tl.int64) * stride + head[:, None, None] * HEAD + dim
    return tl.load(source + at, mask=(half < HEAD // 2) & live[:, None, None], other=0.0).to(tl.float32)


@triton.jit
def _turned(
    source, cos, sin, position, token, head, stride, live, HEAD: tl.constexpr, HALF: tl.constexpr,
    ROPE_WIDTH: tl.constexpr,
):  # fmt: skip
    """The vectors after RoPE: dimension i < W pairs with i + W; those past 2 W are left alone."""
    x = _load(source, token, head, stride, live, HEAD, HALF)
    if ROPE_WIDTH > 0:
        half = tl.arange(0, HALF)[None, None, :]
        dim = tl.arange(0, 2)[None, :, None] * (HEAD // 2) + half
        turns = (dim < 2 * ROPE_WIDTH) & (half < HEAD // 2)
        first = dim < ROPE_WIDTH
        partner = tl.where(first, dim + ROPE_WIDTH, dim - ROPE_WIDTH)
        angle = position * ROPE_WIDTH + tl.where(first, dim, dim - ROPE_WIDTH)
        at = token.to(tl.int64) * stride + head[:, None, None] * HEAD + partner
        other = tl.load(source + at, mask=turns & live[:, None, None], other=0.0).to(tl.float32)
        c = tl.load(cos + angle, mask=turns, other=1.0)
        s = tl.load(sin + angle, mask=turns, other=0.0)
        x = x * c + other * tl.where(first, -s, s)
    return x


@triton.jit
def _hadamard(x, COUNT: tl.constexpr, HALF: tl.constexpr):
    """x @ H for the orthonormal Sylvester matrix of width 2 HALF, by butterflies in fp32."""
    x = x.reshape(COUNT, 2 * HALF)
    for bit in tl.static_range(0, 9):
        if 2**bit < 2 * HALF:
            low, high = x.reshape(COUNT, HALF // 2**bit, 2, 2**bit).permute(0, 1, 3, 2).split()
            x = tl.join(low + high, low - high).permute(0, 1, 3, 2).reshape(COUNT, 2 * HALF)
    return (x * (1.0 / (2 * HALF) ** 0.5)).reshape(COUNT, 2, HALF)


@triton.jit
def store_kernel(
    q, k, v, out, cos, sin, positions, slots, pages, q_stride, k_stride, v_stride,
    STORE_KEYS: tl.constexpr, STORE_VALUES: tl.constexpr, KEY_AT: tl.constexpr, VALUE_AT: tl.constexpr,
    TURN_KEYS: tl.constexpr, TURN_VALUES: tl.constexpr, ROPE_WIDTH: tl.constexpr, HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr, COUNT: tl.constexpr, Q_BLOCKS: tl.constexpr,
    PAGE: tl.constexpr, PAGE_BYTES: tl.constexpr, HEAD_BYTES: tl.constexpr, PLAIN: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Grid (tokens, blocks): the first Q_BLOCKS blocks take COUNT heads of q each, the rest COUNT heads of k and v."""
    token, block = tl.program_id(0), tl.program_id(1)
    after_previous(EARLY)
    position = tl.load(positions + token)
    if block < Q_BLOCKS:
        head = block * COUNT + tl.arange(0, COUNT)
        live = head < HEADS
        x = _turned(q, cos, sin, position, token, head, q_stride, live, HEAD, HALF, ROPE_WIDTH)
        if TURN_KEYS:
            x = _hadamard(x, COUNT, HALF)
        half = tl.arange(0, HALF)[None, None, :]
        dim = tl.arange(0, 2)[None, :, None] * (HEAD // 2) + half
        at = (token.to(tl.int64) * HEADS + head[:, None, None]) * HEAD + dim
        tl.store(out + at, x, mask=(half < HEAD // 2) & live[:, None, None])
    else:
        slot = tl.load(slots + token)
        head = (block - Q_BLOCKS) * COUNT + tl.arange(0, COUNT)
        live = (head < KV_HEADS) & (slot + head * 0 >= 0)
        block_start = pages + (slot // PAGE) * PAGE_BYTES + head * HEAD_BYTES
        row = (slot % PAGE).to(tl.int32) + head * 0
        x = _turned(k, cos, sin, position, token, head, k_stride, live, HEAD, HALF, ROPE_WIDTH)
        if TURN_KEYS:
            x = _hadamard(x, COUNT, HALF)
        high, low = extremes(x, HEAD, HALF)
        STORE_KEYS(block_start, row, x, high, low, live, HEAD, KEY_AT[0], KEY_AT[1], KEY_AT[2], PLAIN)
        x = _load(v, token, head, v_stride, live, HEAD, HALF)
        if TURN_VALUES:
            x = _hadamard(x, COUNT, HALF)
        high, low = extremes(x, HEAD, HALF)
        STORE_VALUES(block_start, row, x, high, low, live, HEAD, VALUE_AT[0], VALUE_AT[1], VALUE_AT[2], PLAIN)


@dataclass(frozen=True)
class Cut:
    """A program's share: vectors, and warps. They are heads of one token, of q or of k and v; `wide` is the kernel of
    triton_wide.py, whose programs take vectors of any tokens, of q, k or v, and want 8 or 16 of them and one warp."""

    vectors: int
    warps: int
    wide: bool = False


def choose_cut(kv_heads: int) -> Cut:
    """Measured on an H200 (benchmarks/store.py): 8 vectors a warp, butterflies within lanes, are 3.6 times as fast as 4
    vectors of 4 warps for 8192 tokens in int8, and no slower in any case."""
    return Cut(min(8, triton.next_power_of_2(kv_heads)), 1, wide=True)


@dataclass(frozen=True)
class MatrixCut:
    """A program's share where the transform is a matrix: vectors that meet one matrix, how many dimensions of them a
    step of the product takes, and warps."""

    vectors: int
    chunk: int
    warps: int
    precision: str = "split"
    """what is done to fp32 factors: by the kernel ("split"), or one of `tl.dot`'s input precisions"""


def choose_matrix_cut(tokens: int, head_dim: int, invariant: bool) -> MatrixCut:
    """Few tokens want many programs, many want the matrix read seldom; wide heads leave registers for few vectors only.
    `invariant`: the same whatever the number of tokens, since the two add up in different orders. Measured on an H200
    with heads of 128 (benchmarks/store_matrix.py)."""
    if head_dim > 128 or (tokens <= 32 and not invariant):
        return MatrixCut(16, 32, 8)
    return MatrixCut(64, min(64, max(16, triton.next_power_of_2(head_dim // 2))), 4, "bf16x6")


def _offsets(slots: tuple[PlaneSlot, ...]) -> tuple[int, ...]:
    return (*(slot.offset for slot in slots), 0, 0)[:3]


def _rows_of(vectors: Tensor) -> Tensor:
    """Heads and dimensions contiguous; a slice of a fused QKV output is taken as it is."""
    return vectors if vectors.stride()[1:] == (vectors.shape[2], 1) else vectors.contiguous()


@dataclass(frozen=True, eq=False)
class _Step:
    """One call of `store`, and what its kernels have in common."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    rope: Rope | None
    rows: Rows
    layer: LayerPages

    @property
    def pairs(self) -> int:
        return 0 if self.rope is None else self.rope.cos.shape[-1]

    def addresses(self) -> tuple[Tensor, ...]:
        cos, sin = (self.q, self.q) if self.rope is None else (self.rope.cos, self.rope.sin)
        return self.q, self.k, self.v, self.out, cos, sin, self.rows.positions, self.rows.slots, self.layer.pages

    def strides(self) -> tuple[int, int, int]:
        return self.q.stride(0), self.k.stride(0), self.v.stride(0)

    def constants(self) -> dict[str, Any]:
        layout, plan = self.layer.layout, self.layer.plan
        return {
            "STORE_KEYS": tiles_of(plan.key.scheme).store,
            "STORE_VALUES": tiles_of(plan.value.scheme).store,
            "KEY_AT": _offsets(layout.key_slots),
            "VALUE_AT": _offsets(layout.value_slots),
            "HEADS": self.q.shape[1],
            "KV_HEADS": layout.kv_heads,
            "HEAD": self.q.shape[2],
            "HALF": triton.next_power_of_2(self.q.shape[2] // 2),
            "PAGE": layout.page_tokens,
            "PAGE_BYTES": layout.page_bytes,
            "HEAD_BYTES": layout.head_bytes,
            "PLAIN": _INTERPRETED,
            "enable_fp_fusion": False,
            **follows(self.q.device),
        }


def _by_butterflies(side: SideTransform, head_dim: int) -> bool:
    return side.rotated and side.matrix is None and head_dim & (head_dim - 1) == 0


def store(
    q: Tensor, k: Tensor, v: Tensor, rope: Rope | None, rows: Rows, layer: LayerPages,
    cut: Cut | MatrixCut | None = None,
) -> Tensor:  # fmt: skip
    head_dim = q.shape[2]
    q, k, v = _rows_of(q), _rows_of(k), _rows_of(v)
    step = _Step(q, k, v, torch.empty(q.shape, dtype=torch.float32, device=q.device), rope, rows, layer)
    if any(side.changes and not _by_butterflies(side, head_dim) for side in (layer.key, layer.value)):
        usual = choose_matrix_cut(len(q), head_dim, rows.invariant)
        _store_by_matrix(step, cut if isinstance(cut, MatrixCut) else usual)
    else:
        _store_by_butterflies(step, cut if isinstance(cut, Cut) else choose_cut(layer.layout.kv_heads))
    return step.out


def _store_by_butterflies(step: _Step, cut: Cut) -> None:
    tokens, heads, head_dim = step.q.shape
    kv_heads = step.layer.layout.kv_heads
    constants = step.constants() | {
        "TURN_KEYS": step.layer.key.rotated,
        "TURN_VALUES": step.layer.value.rotated,
        "num_warps": cut.warps,
    }
    if cut.wide and step.pairs in (0, head_dim // 2):  # it holds halves: pairs must be of both
        blocks = triton.cdiv(tokens * heads, cut.vectors) + 2 * triton.cdiv(tokens * kv_heads, cut.vectors)
        launch(
            store_wide_kernel, (blocks,), *step.addresses(), *step.strides(), tokens, ROPE=step.pairs > 0,
            VECTORS=cut.vectors, **constants,
        )  # fmt: skip
    else:
        q_blocks = triton.cdiv(heads, cut.vectors)
        launch(
            store_kernel, (tokens, q_blocks + triton.cdiv(kv_heads, cut.vectors)), *step.addresses(), *step.strides(),
            ROPE_WIDTH=step.pairs, COUNT=cut.vectors, Q_BLOCKS=q_blocks, **constants,
        )  # fmt: skip


def _store_by_matrix(step: _Step, cut: MatrixCut) -> None:
    tokens, heads, _ = step.q.shape
    layer, kv_heads = step.layer, step.layer.layout.kv_heads
    queries, keys = stands_for_queries(layer.key, step.q), stands_for_keys(layer.key, step.k)
    values = stands_for_values(layer.value, step.v, _EXACT)
    blocks = kv_heads * (triton.cdiv(tokens * heads // kv_heads, cut.vectors) + 2 * triton.cdiv(tokens, cut.vectors))
    none = queries.matrix  # never read
    launch(
        store_matrix_kernel, (blocks,), *step.addresses(), queries.matrix, keys.matrix, values.matrix,
        none if keys.shift is None else keys.shift, none if values.shift is None else values.shift,
        *step.strides(), tokens, KEYS_SHARE=keys.shared, VALUES_SHARE=values.shared,
        SHIFT_KEYS=keys.shift is not None, SHIFT_VALUES=values.shift is not None, VALUE_FACTOR=values.factor,
        ROPE_WIDTH=step.pairs, ROWS=cut.vectors, CHUNK=cut.chunk, PRECISION="ieee" if _INTERPRETED else cut.precision,
        num_warps=cut.warps, **step.constants(),
    )  # fmt: skip
