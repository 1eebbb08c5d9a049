"""Store on the CPU: one pass over the new tokens, every vector rotated and encoded while it is in cache."""

from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from octavo.kernels.cpu.build import Kernel, per_codec_pair
from octavo.kernels.cpu.memory import address_of, aligned, floats, ints64, keep_alive, octets
from octavo.kernels.cpu.rotation import subtract, turn
from octavo.kernels.cpu.team import next_item, run_team, team_launcher
from octavo.kernels.cpu.vectors import LANES
from octavo.kernels.cpu.views import LayerView, layer_view, step_view
from octavo.kernels.rows import Rope, Rows
from octavo.kv.pool import LayerPages
from octavo.kv.row_codec import encode_row, from_half

__all__ = ["store"]

_FP32, _BF16, _FP16 = 0, 1, 2
_KINDS = {torch.float32: _FP32, torch.bfloat16: _BF16, torch.float16: _FP16}
_TOKENS_PER_ITEM = 4


class _Inputs(NamedTuple):
    """Addresses, strides from token to token in bytes, `_KINDS` of the numbers; cos = 0 where there is no rope."""

    q: int
    k: int
    v: int
    q_stride: int
    k_stride: int
    v_stride: int
    kind: int
    tokens: int
    heads: int
    out: int
    cos: int
    sin: int
    half: int


@njit(error_model="numpy")
def _load(address, kind, dim, vector):
    """Widen one vector to fp32; returns nothing, fills `vector` `[dim]`."""
    if kind == _FP32:
        numbers = floats(address, dim)
        for i in range(dim):
            vector[i] = numbers[i]
        return
    bits = octets(address, 2 * dim).view(np.uint16)
    if kind == _BF16:
        wide = vector.view(np.uint32)
        for i in range(dim):
            wide[i] = np.uint32(bits[i]) << np.uint32(16)
    else:
        for i in range(dim):
            vector[i] = from_half(bits[i])


@njit(error_model="numpy")
def _rope(vector, cos, sin, half):
    """Half-split rotary embedding in place; `cos` and `sin` `[half]` belong to the vector's position."""
    for i in range(half):
        first, second = vector[i], vector[i + half]
        vector[i] = first * cos[i] - second * sin[i]
        vector[i + half] = second * cos[i] + first * sin[i]


@njit(error_model="numpy")
def _store_token(token, inputs, layer, key, value, step, room, spare):
    dim, item = layer.dim, 4 if inputs.kind == _FP32 else 2
    padded = (dim + LANES - 1) // LANES * LANES
    vector = floats(room, padded)
    half, none, one = inputs.half, np.int64(0), np.int64(1)  # a literal argument would be compiled apart
    position = ints64(step.positions + 8 * token, 1)[0]
    cos = floats(inputs.cos + 4 * half * position, half)
    sin = floats(inputs.sin + 4 * half * position, half)
    group = inputs.heads // layer.kv_heads
    for head in range(inputs.heads):
        _load(inputs.q + token * inputs.q_stride + head * dim * item, inputs.kind, dim, vector)
        _rope(vector, cos, sin, half)
        turn(room, none, one, dim, layer.turn_query + head // group * layer.key_stride, spare)
        _load(room, none, dim, floats(inputs.out + 4 * dim * (token * inputs.heads + head), dim))
    slot = ints64(step.slots + 8 * token, 1)[0]
    if slot < 0:
        return
    page = layer.pages + slot // layer.page_tokens * layer.page_bytes
    for head in range(layer.kv_heads):
        block = octets(page + head * layer.head_bytes, layer.head_bytes)
        _load(inputs.k + token * inputs.k_stride + head * dim * item, inputs.kind, dim, vector)
        _rope(vector, cos, sin, half)
        turn(room, none, one, dim, layer.turn_key + head * layer.key_stride, spare)
        if layer.key_shift != 0:
            subtract(room, layer.key_shift + 4 * dim * head, dim)
        encode_row(key, block, slot % layer.page_tokens, vector, dim)
        _load(inputs.v + token * inputs.v_stride + head * dim * item, inputs.kind, dim, vector)
        turn(room, none, one, dim, layer.turn_value + head * layer.value_stride, spare)
        if layer.value_shift != 0:
            subtract(room, layer.value_shift + 4 * dim * head, dim)
        encode_row(value, block, slot % layer.page_tokens, vector, dim)


@njit(error_model="numpy")
def _work(counter, inputs, layer, key, value, step):
    """Take tokens until none are left. Every thread of the team runs this."""
    padded = (layer.dim + LANES - 1) // LANES * LANES
    scratch = np.empty(2 * padded + LANES, np.float32)
    room = aligned(address_of(scratch))
    first = next_item(counter) * _TOKENS_PER_ITEM
    while first < inputs.tokens:
        for token in range(first, min(first + _TOKENS_PER_ITEM, inputs.tokens)):
            _store_token(token, inputs, layer, key, value, step, room, room + 4 * padded)
        first = next_item(counter) * _TOKENS_PER_ITEM
    keep_alive(scratch)


@per_codec_pair
def _kernel_of(digest: int) -> Kernel:
    @njit(cache=True, error_model="numpy")
    def store_kernel(launcher, threads, inputs, layer, key, value, step):
        counter = np.full(1, digest - digest, np.int64)  # the digest of the sources is part of the key on disk
        run_team(launcher, threads, _work, (address_of(counter), inputs, layer, key, value, step))
        keep_alive(counter)

    return store_kernel


def _dense(vectors: Tensor, dtype: torch.dtype) -> Tensor:
    """The same numbers with dense heads, in `dtype`; strides from token to token are kept."""
    vectors = vectors.to(dtype)
    return vectors if vectors.stride()[1:] == (vectors.shape[2], 1) else vectors.contiguous()


def _kernel(view: LayerView) -> Kernel:
    if "store" not in view.kernels:
        view.kernels["store"] = _kernel_of(type(view.key), type(view.value))
    return view.kernels["store"]


def store(q: Tensor, k: Tensor, v: Tensor, rope: Rope | None, rows: Rows, layer: LayerPages) -> Tensor:
    view = layer_view(layer)
    dtype = q.dtype if q.dtype == k.dtype == v.dtype and q.dtype in _KINDS else torch.float32
    q, k, v = _dense(q, dtype), _dense(k, dtype), _dense(v, dtype)
    out = torch.empty(q.shape, dtype=torch.float32)
    tokens, heads, item = q.shape[0], q.shape[1], dtype.itemsize
    cos, sin, half = (rope.cos.data_ptr(), rope.sin.data_ptr(), rope.cos.shape[1]) if rope is not None else (0, 0, 0)
    inputs = _Inputs(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), q.stride(0) * item, k.stride(0) * item, v.stride(0) * item,
        _KINDS[dtype], tokens, heads, out.data_ptr(), cos, sin, half,
    )  # fmt: skip
    launcher = team_launcher()
    threads = torch.get_num_threads() if launcher and tokens > _TOKENS_PER_ITEM else 1
    _kernel(view)(launcher, threads, inputs, view.layer, view.key, view.value, step_view(rows))
    return out
