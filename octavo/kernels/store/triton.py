"""Store in Triton: RoPE -> rotation -> encode -> planes, one launch for q, k and v.

Widths that are no power of two, and fitted transforms, are turned by torch beforehand.
"""

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.ahead import follows, launch
from octavo.kernels.early import after_previous
from octavo.kernels.rows import Rope, Rows
from octavo.kernels.store.reference import apply_rope
from octavo.kernels.store.triton_wide import extremes, store_wide_kernel
from octavo.kv.layout import PlaneSlot
from octavo.kv.pool import LayerPages
from octavo.kv.tile_codec import tiles_of

__all__ = ["Cut", "choose_cut", "store", "store_kernel"]

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


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


def _offsets(slots: tuple[PlaneSlot, ...]) -> tuple[int, ...]:
    return (*(slot.offset for slot in slots), 0, 0)[:3]


def _rows_of(vectors: Tensor) -> Tensor:
    """Heads and dimensions contiguous; a slice of a fused QKV output is taken as it is."""
    return vectors if vectors.stride()[1:] == (vectors.shape[2], 1) else vectors.contiguous()


def store(
    q: Tensor, k: Tensor, v: Tensor, rope: Rope | None, rows: Rows, layer: LayerPages, cut: Cut | None = None
) -> Tensor:
    layout, plan = layer.layout, layer.plan
    tokens, heads, head_dim = q.shape
    two_power = head_dim & (head_dim - 1) == 0
    turn_keys, turn_values = (side.rotated and side.matrix is None and two_power for side in (layer.key, layer.value))
    if layer.key.changes and not turn_keys:
        if rope is not None:
            q, k, rope = apply_rope(q, rope, rows.positions), apply_rope(k, rope, rows.positions), None
        q, k = layer.key.query(q), layer.key.stored(k)
    if layer.value.changes and not turn_values:
        v = layer.value.stored(v)
    q, k, v = _rows_of(q), _rows_of(k), _rows_of(v)
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    pairs = 0 if rope is None else rope.cos.shape[-1]
    cut = cut or choose_cut(layout.kv_heads)
    key, value = tiles_of(plan.key.scheme), tiles_of(plan.value.scheme)
    inputs = (
        q, k, v, out, q if rope is None else rope.cos, q if rope is None else rope.sin, rows.positions, rows.slots,
        layer.pages, q.stride(0), k.stride(0), v.stride(0),
    )  # fmt: skip
    constants = {
        "STORE_KEYS": key.store,
        "STORE_VALUES": value.store,
        "KEY_AT": _offsets(layout.key_slots),
        "VALUE_AT": _offsets(layout.value_slots),
        "TURN_KEYS": turn_keys,
        "TURN_VALUES": turn_values,
        "HEADS": heads,
        "KV_HEADS": layout.kv_heads,
        "HEAD": head_dim,
        "HALF": triton.next_power_of_2(head_dim // 2),
        "PAGE": layout.page_tokens,
        "PAGE_BYTES": layout.page_bytes,
        "HEAD_BYTES": layout.head_bytes,
        "PLAIN": _INTERPRETED,
        "num_warps": cut.warps,
        "enable_fp_fusion": False,
        **follows(q.device),
    }
    if cut.wide and pairs in (0, head_dim // 2):  # its programs hold both halves of a vector, so pairs must be of both
        blocks = triton.cdiv(tokens * heads, cut.vectors) + 2 * triton.cdiv(tokens * layout.kv_heads, cut.vectors)
        launch(store_wide_kernel, (blocks,), *inputs, tokens, ROPE=pairs > 0, VECTORS=cut.vectors, **constants)
    else:
        q_blocks = triton.cdiv(heads, cut.vectors)
        launch(
            store_kernel, (tokens, q_blocks + triton.cdiv(layout.kv_heads, cut.vectors)), *inputs, ROPE_WIDTH=pairs,
            COUNT=cut.vectors, Q_BLOCKS=q_blocks, **constants,
        )  # fmt: skip
    return out
