"""Paged attention on the CPU.

The work is cut into items: one row, one KV head, one block of its new tokens, for few and long rows one split of the
context too. An item reads its pages in order; each tile of up to 64 tokens is decoded once into L1 cache and used by
all query heads of the group and all new tokens of the block:

    K tile -> transposed    scores[6 queries, 64] = Q @ K^T      running softmax, one maximum a split
    V tile                  sums[6 queries, D] = sums * keep + weights @ V

Every 512 tokens the split's sums are merged into the row's. What a query computes, operation for operation, depends
only on its position and its window: not on the batch, the chunk it came in, how items were cut, or the thread count.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from octavo.kernels.cpu.build import Kernel, per_codec_pair
from octavo.kernels.cpu.memory import address_of, aligned, floats, ints32, ints64, keep_alive, octets, prefetch
from octavo.kernels.cpu.room import PANEL, lay_out
from octavo.kernels.cpu.rotation import add, turn
from octavo.kernels.cpu.team import next_item, run_team, team_launcher
from octavo.kernels.cpu.vectors import LANES, TILE, exp2, product, softmax_row, transpose16
from octavo.kernels.cpu.views import Angles, LayerView, angles_of, layer_view, step_view
from octavo.kernels.rows import Rows, ScoreCorrection
from octavo.kv.pool import LayerPages
from octavo.kv.row_codec import decode_tile

__all__ = ["attend"]

_SPLIT_TOKENS = 512
_BLOCK_QUERIES = 96
_EMPTY = np.float32(-1e30)  # the maximum of no scores
_NO_WINDOW = 1 << 40
_NO_ANGLES = Angles(0, 0, 0, 0)


class _Call(NamedTuple):
    """Addresses of fp32 q, out `[T, heads, D]` and of the correction's a, b `[T, heads, W]` (0: none)."""

    q: int
    out: int
    heads: int
    block_tokens: int
    split_rows: int  # whether items are cut along the context too
    window: int
    a: int
    b: int


class _Item(NamedTuple):
    row: Any  # all int64
    head: Any
    first_token: Any  # of the step
    tokens: Any
    position: Any  # of the first token
    context: Any


@njit(error_model="numpy")
def _load_queries(item, call, layer, scale, width, room):
    """Copy the block's queries, times the scale; query r is token r // group, head r % group of the KV head's."""
    group, dim = call.heads // layer.kv_heads, layer.dim
    rows = item.tokens * group
    for r in range(rows):
        at = (item.first_token + r // group) * call.heads + item.head * group + r % group
        source, target = floats(call.q + 4 * dim * at, dim), floats(room.queries + 4 * dim * r, dim)
        for i in range(dim):
            target[i] = source[i] * scale
        if width:
            log2e = np.float32(1.4426950408889634)
            for side, origin in enumerate((call.a, call.b)):
                source = floats(origin + 4 * width * at, width)
                target = floats(room.left + 4 * width * (side * rows + r), width)
                for i in range(width):
                    target[i] = source[i] * log2e


@njit(error_model="numpy")
def _clear(state, sums, rows, padded):
    pairs = floats(state, 2 * rows)
    for r in range(rows):
        pairs[2 * r], pairs[2 * r + 1] = _EMPTY, np.float32(0.0)
    numbers = floats(sums, rows * padded)
    for i in range(rows * padded):
        numbers[i] = np.float32(0.0)


@njit(error_model="numpy")
def _merge(total_state, total, state, sums, rows, padded):
    """Add one split's sums to the row's."""
    whole, part = floats(total_state, 2 * rows), floats(state, 2 * rows)
    for r in range(rows):
        peak = max(whole[2 * r], part[2 * r])
        old, new = exp2(np.float32(whole[2 * r] - peak)), exp2(np.float32(part[2 * r] - peak))
        whole[2 * r] = peak
        whole[2 * r + 1] = whole[2 * r + 1] * old + part[2 * r + 1] * new
        target, source = floats(total + 4 * padded * r, padded), floats(sums + 4 * padded * r, padded)
        for i in range(padded):
            target[i] = target[i] * old + source[i] * new


@njit(error_model="numpy")
def _read_tile(block, layer, key, value, offset, count, room):
    """Decode tokens `[offset, offset + count)` of a head's block: K transposed to `keys`, V left in `tile`."""
    dim, padded = layer.dim, (layer.dim + LANES - 1) // LANES * LANES
    tile = floats(room.tile, TILE * padded).reshape(TILE, padded)
    decode_tile(key, block, offset, count, dim, tile)
    for t in range(0, count, LANES):
        for i in range(0, padded, LANES):
            transpose16(room.tile + 4 * (t * padded + i), 4 * padded, room.keys + 4 * (i * TILE + t), 4 * TILE)
    decode_tile(value, block, offset, count, dim, tile)


@njit(error_model="numpy")
def _attend_tile(item, call, layer, angles, begin, count, room, state, sums):
    """All the block's queries that see any of the tokens `[begin, begin + count)` of the sequence."""
    group, dim = call.heads // layer.kv_heads, layer.dim
    stride = (dim + LANES - 1) // LANES * LANES * 4
    rows, width = item.tokens * group, angles.width
    first = max(0, begin - item.position) * group
    end = min(item.tokens, begin + count - 1 + call.window - item.position) * group
    keep = floats(room.keep, PANEL)
    none, tile = np.int64(0), np.int64(TILE)  # a literal argument would be compiled apart
    for r in range(first, end, PANEL):
        n = min(PANEL, end - r)
        product(room.queries + 4 * dim * r, 4 * dim, room.keys, 4 * TILE, room.scores, 4 * TILE, n, tile, dim, none)
        if width:
            left = room.left + 4 * width * r
            product(left, 4 * width, angles.cos + 4 * begin, angles.stride_bytes, room.scores, 4 * TILE, n, tile,
                        width, room.ones)  # fmt: skip
            left += 4 * width * rows
            product(left, 4 * width, angles.sin + 4 * begin, angles.stride_bytes, room.scores, 4 * TILE, n, tile,
                        width, room.ones)  # fmt: skip
        for i in range(n):
            position = item.position + (r + i) // group
            seen_from, seen_to = max(0, position - call.window + 1 - begin), min(count, position + 1 - begin)
            keep[i] = softmax_row(room.scores + 4 * TILE * i, seen_from, seen_to, state + 8 * (r + i))
        mine = sums + stride * r
        product(room.scores, 4 * TILE, room.tile, stride, mine, stride, n, stride // 4, count, room.keep)


@njit(error_model="numpy")
def _attend_split(item, call, layer, key, value, step, angles, split, room, state, sums):
    """One split of the context for one block: fills `state` and `sums`."""
    group, padded = call.heads // layer.kv_heads, (layer.dim + LANES - 1) // LANES * LANES
    _clear(state, sums, item.tokens * group, padded)
    pages = max(1, _SPLIT_TOKENS // layer.page_tokens)
    last = item.position + item.tokens - 1
    oldest = max(0, item.position - call.window + 1)
    table = ints32(step.tables + 4 * step.table_width * item.row, step.table_width)
    end = min((split + 1) * pages, last // layer.page_tokens + 1)
    for p in range(split * pages, end):
        if p + 1 < end:
            ahead = layer.pages + np.int64(table[p + 1]) * layer.page_bytes + item.head * layer.head_bytes
            for line in range(0, layer.head_bytes, 64):
                prefetch(ahead + line)
        for offset in range(0, layer.page_tokens, TILE):
            begin = p * layer.page_tokens + offset
            count = min(TILE, layer.page_tokens - offset, last + 1 - begin)
            if count <= 0 or begin + count <= oldest:
                continue
            page = layer.pages + np.int64(table[p]) * layer.page_bytes
            block = octets(page + item.head * layer.head_bytes, layer.head_bytes)
            _read_tile(block, layer, key, value, offset, count, room)
            _attend_tile(item, call, layer, angles, begin, count, room, state, sums)


@njit(error_model="numpy")
def _finish(item, call, layer, room):
    """Divide by the sums of the weights, undo the rotation of V, write the block's rows of the output."""
    group, dim = call.heads // layer.kv_heads, layer.dim
    padded, rows = (dim + LANES - 1) // LANES * LANES, item.tokens * group
    state = floats(room.total_state, 2 * rows)
    for r in range(rows):
        total, inverse = floats(room.total + 4 * padded * r, dim), np.float32(1.0) / state[2 * r + 1]
        for i in range(dim):
            total[i] *= inverse
        if layer.value_shift != 0:
            add(room.total + 4 * padded * r, layer.value_shift + 4 * dim * item.head, dim)
    turn(room.total, 4 * padded, rows, dim, layer.turn_back + item.head * layer.value_stride, room.spare)
    for r in range(rows):
        at = (item.first_token + r // group) * call.heads + item.head * group + r % group
        total, out = floats(room.total + 4 * padded * r, dim), floats(call.out + 4 * dim * at, dim)
        for i in range(dim):
            out[i] = total[i]


@njit(error_model="numpy")
def _span(tokens, position, call, layer):
    """First and past-the-last split that a block of queries sees."""
    split = max(1, _SPLIT_TOKENS // layer.page_tokens) * layer.page_tokens
    return max(0, position - call.window + 1) // split, (position + tokens - 1) // split + 1


@njit(error_model="numpy")
def _cut(call, layer, step, items):
    """Number the items: row r's are `[items[r], items[r + 1])`. Returns how many tiles of pages they read in all."""
    starts, contexts, tiles = ints32(step.starts, step.rows + 1), ints32(step.contexts, step.rows), 0
    items[0] = 0
    for row in range(step.rows):
        tokens = starts[row + 1] - starts[row]
        blocks = (tokens + call.block_tokens - 1) // call.block_tokens
        splits = 1
        if call.split_rows and blocks == 1:
            first, end = _span(tokens, contexts[row] - tokens, call, layer)
            splits = end - first
        items[row + 1] = items[row] + layer.kv_heads * blocks * splits
        tiles += layer.kv_heads * blocks * (min(contexts[row], call.window) // TILE + 1)
    return tiles


@njit(error_model="numpy")
def _item_of(number, row, items, call, layer, step):
    """Item `number` of the step: the item, its split or -1 for all, its first split and the split past its last."""
    starts, contexts = ints32(step.starts, step.rows + 1), ints32(step.contexts, step.rows)
    begin, tokens = starts[row], starts[row + 1] - starts[row]
    blocks = (tokens + call.block_tokens - 1) // call.block_tokens
    per_head = (items[row + 1] - items[row]) // layer.kv_heads
    local = number - items[row]
    head, within = local // per_head, local % per_head
    block, split = (0, within) if blocks == 1 else (blocks - 1 - within, 0)  # the longest first
    first = block * call.block_tokens
    count = min(call.block_tokens, tokens - first)
    position = np.int64(contexts[row] - tokens + first)
    item = _Item(np.int64(row), head, np.int64(begin + first), np.int64(count), position, np.int64(contexts[row]))
    low, high = _span(count, position, call, layer)
    return item, (split + low if per_head > blocks else -1), low, high


@njit(error_model="numpy")
def _take_items(scratch, counter, done, items_at, partials, call, layer, key, value, step, angles, scale):
    """Take items until none are left, with scratch room at an address.

    The thread that finishes the last split of a row and head merges them all, in order.
    """
    group, padded = call.heads // layer.kv_heads, (layer.dim + LANES - 1) // LANES * LANES
    block_rows = call.block_tokens * group
    items, row = ints64(items_at, step.rows + 1), 0
    room, _ = lay_out(scratch, block_rows, layer.dim, angles.width)
    ones = floats(room.ones, PANEL)
    for i in range(PANEL):
        ones[i] = np.float32(1.0)
    partial_bytes = block_rows * 4 * (padded + LANES)  # sums, then state
    while True:
        number = next_item(counter)
        if number >= items[step.rows]:
            return
        while number >= items[row + 1]:
            row += 1
        item, split, low, high = _item_of(number, row, items, call, layer, step)
        rows = item.tokens * group
        _load_queries(item, call, layer, scale, angles.width, room)
        if split >= 0:
            mine = partials + number * partial_bytes
            state = mine + block_rows * 4 * padded
            _attend_split(item, call, layer, key, value, step, angles, split, room, state, mine)
            if next_item(done + 8 * (item.row * layer.kv_heads + item.head)) < high - low - 1:
                continue
        _clear(room.total_state, room.total, rows, padded)
        for s in range(low, high):
            state, sums = room.state, room.sums
            if split >= 0:
                sums = partials + (number - split + s) * partial_bytes
                state = sums + block_rows * 4 * padded
            else:
                _attend_split(item, call, layer, key, value, step, angles, s, room, state, sums)
            _merge(room.total_state, room.total, state, sums, rows, padded)
        _finish(item, call, layer, room)


@njit(error_model="numpy")
def _work(counter, done, items_at, partials, call, layer, key, value, step, angles, scale):
    """What every thread of the team runs."""
    block_rows = call.block_tokens * (call.heads // layer.kv_heads)
    _, room_bytes = lay_out(np.int64(0), block_rows, layer.dim, angles.width)
    scratch = np.empty(room_bytes + 64, np.uint8)
    _take_items(address_of(scratch), counter, done, items_at, partials, call, layer, key, value, step, angles, scale)
    keep_alive(scratch)


@per_codec_pair
def _kernel_of(digest: int) -> Kernel:
    @njit(cache=True, error_model="numpy")
    def attention_kernel(launcher, threads, call, layer, key, value, step, angles, scale):
        items = np.full(step.rows + 1, digest - digest, np.int64)  # the digest is part of the key on disk
        tiles = _cut(call, layer, step, items)
        counter = np.zeros(1 + step.rows * layer.kv_heads, np.int64)
        block_rows = call.block_tokens * (call.heads // layer.kv_heads)
        padded = (layer.dim + LANES - 1) // LANES * LANES
        splits = items[step.rows] if call.split_rows else 0
        partials = np.empty(splits * block_rows * (padded + LANES) + LANES, np.float32)
        at, numbers, room = address_of(counter), address_of(items), aligned(address_of(partials))
        run_team(launcher, threads if tiles >= 4 else 1, _work,
                 (at, at + 8, numbers, room, call, layer, key, value, step, angles, scale))  # fmt: skip
        keep_alive(items)
        keep_alive(counter)
        keep_alive(partials)

    return attention_kernel


def _kernel(view: LayerView) -> Kernel:
    if "attend" not in view.kernels:
        view.kernels["attend"] = _kernel_of(type(view.key), type(view.value))
    return view.kernels["attend"]


def attend(
    q: Tensor, rows: Rows, layer: LayerPages, softmax_scale: float, window: int | None,
    correction: ScoreCorrection | None,
) -> Tensor:  # fmt: skip
    view, step = layer_view(layer), step_view(rows)
    q = q.contiguous()
    out = torch.empty_like(q)
    a = b = 0
    angles = _NO_ANGLES
    if correction is not None:
        (angles, _), a, b = angles_of(correction.rope), correction.a.data_ptr(), correction.b.data_ptr()
    heads, kv_heads = q.shape[1], view.layer.kv_heads
    block_tokens = min(rows.max_query, max(1, _BLOCK_QUERIES * kv_heads // heads))
    split_rows = rows.max_context > _SPLIT_TOKENS and step.rows * kv_heads <= 64
    call = _Call(q.data_ptr(), out.data_ptr(), heads, max(1, block_tokens), int(split_rows), window or _NO_WINDOW, a, b)
    launcher = team_launcher()
    threads = torch.get_num_threads() if launcher else 1
    scale = softmax_scale * math.log2(math.e)
    _kernel(view)(launcher, threads, call, view.layer, view.key, view.value, step, angles, np.float32(scale))
    return out
