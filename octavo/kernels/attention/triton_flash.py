"""Dense causal attention over chunks of different lengths: one program a (block of query rows, KV head, chunk).

Query rows share the tiles of their KV head as in the paged kernel: row r of a chunk is new token r // GROUP, query head
r % GROUP. A program first takes the tiles that all its rows see whole, without a mask, then those that the diagonal
cuts (with a window also those that its start cuts, before the others). Running maximum and sum are fp32, the products'
operands 16-bit; the scale is folded into the exponent, whose base is 2.
"""

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.ahead import launch
from octavo.kernels.rows import Chunks

__all__ = ["FlashCut", "arguments", "flash", "flash_kernel", "heads_together", "own_block"]

_LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class FlashCut:
    """How the work is cut: query rows a program, keys a tile, warps, load stages; and the keys and values,
    in bytes, of the heads that are worked on side by side."""

    rows: int
    keys: int
    warps: int
    stages: int
    together_bytes: int = 16 << 20
    overlapped: bool = False
    """the kernel of triton_flash_hopper.py, which wants a Hopper GPU, 8 warps (or 4 of 64 rows), two stages or more,
    and a width of 64, 128 or 256"""


def flash(
    q: Tensor, keys: Tensor, values: Tensor, out: Tensor, chunks: Chunks, max_query: int, softmax_scale: float,
    window: int | None, cut: FlashCut,
) -> None:  # fmt: skip
    """Attention of `chunks` into `out` `[chunks.tokens, H, D]`. q as `out`, fp32 or of its type; keys and values
    `[chunks.context_tokens, G, D]` of the type of `out`; `max_query` tokens in the longest chunk, or more."""
    _, kv_heads, head_dim = keys.shape
    grid, laid, constants = arguments(out, chunks, max_query, kv_heads, softmax_scale, window, cut)
    if cut.overlapped:
        from octavo.kernels.attention.triton_flash_hopper import hopper_flash_kernel, hopper_tiles

        tiles = [hopper_tiles(side.flatten(1), cut.keys, head_dim) for side in (keys, values)]
        launch(
            hopper_flash_kernel, grid, q, *tiles, *laid, chunks.key_start, 0, 0, PAGE_ROWS=0, HEAD_ROWS=0, VALUE_ROW=0,
            **constants,
        )  # fmt: skip
        return
    launch(
        flash_kernel, grid, q, keys, values, *laid, WIDTH=triton.next_power_of_2(head_dim), num_stages=cut.stages,
        **constants,
    )  # fmt: skip


def arguments(
    out: Tensor, chunks: Chunks, max_query: int, kv_heads: int, softmax_scale: float, window: int | None, cut: FlashCut
) -> tuple[tuple[int, int], tuple[Any, ...], dict[str, Any]]:
    """Grid, arguments from `out` on, and constants of either kernel."""
    heads, head_dim = out.shape[1:]
    blocks = triton.cdiv(max_query * (heads // kv_heads), cut.rows)
    together = heads_together(chunks, kv_heads, 2 * head_dim * out.element_size(), cut.together_bytes)
    laid = (out, chunks.query_start, chunks.key_start, softmax_scale * _LOG2_E, window or 0, blocks, together)
    constants = {
        "KV_HEADS": kv_heads, "GROUP": heads // kv_heads, "HEAD": head_dim, "ROWS": cut.rows, "KEYS": cut.keys,
        "WINDOW": window is not None, "STAGES": cut.stages, "num_warps": cut.warps,
    }  # fmt: skip
    return (blocks * kv_heads, len(chunks.key_start) - 1), laid, constants


def heads_together(chunks: Chunks, kv_heads: int, token_bytes: int, together_bytes: int) -> int:
    """How many KV heads' keys and values, `token_bytes` each token, are `together_bytes`, in a chunk of average
    context."""
    average = max(1, chunks.context_tokens // (len(chunks.key_start) - 1))
    return max(1, min(kv_heads, together_bytes // (average * token_bytes)))


@triton.jit
def _tile(
    source, begin, first, context, group, KV_HEADS: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
    KEYS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Rows [first, first + KEYS) of a context that lies from `begin` on: `[KEYS, WIDTH]`, zero past its end."""
    row, dim = first + tl.arange(0, KEYS)[:, None], tl.arange(0, WIDTH)[None, :]
    at = source + (begin.to(tl.int64) * KV_HEADS + group) * HEAD + row * (KV_HEADS * HEAD) + dim
    if MASKED:
        x = tl.load(at, mask=(row < context) & (dim < HEAD), other=0.0)
    elif HEAD != WIDTH:
        x = tl.load(at, mask=dim < HEAD, other=0.0)
    else:
        x = tl.load(at)
    return x


@triton.jit
def _walk(
    state, query, keys, values, begin, context, position, window, group, scale_log2, first, end,
    MASKED: tl.constexpr, WINDOW: tl.constexpr, KV_HEADS: tl.constexpr, HEAD: tl.constexpr,
    WIDTH: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Take the tiles from key `first` up to `end` into the softmax."""
    total, peak, mass = state
    for start in tl.range(first, end, KEYS, num_stages=STAGES):
        tile = _tile(keys, begin, start, context, group, KV_HEADS, HEAD, WIDTH, KEYS, MASKED)
        score = tl.dot(query, tl.trans(tile), input_precision="ieee")
        if MASKED:
            key = (start + tl.arange(0, KEYS))[None, :]
            seen = key <= position[:, None]
            if WINDOW:
                seen = seen & (key > position[:, None] - window)
            score = tl.where(seen, score, float("-inf"))
        top = tl.maximum(peak, tl.max(score, 1) * scale_log2)
        weights = tl.exp2(score * scale_log2 - top[:, None])
        alpha = tl.exp2(peak - top)
        peak, mass = top, mass * alpha + tl.sum(weights, 1)
        tile = _tile(values, begin, start, context, group, KV_HEADS, HEAD, WIDTH, KEYS, MASKED)
        total = tl.dot(weights.to(tile.dtype), tile, total * alpha[:, None], input_precision="ieee")
    return total, peak, mass


@triton.jit
def own_block(
    query_start, key_start, blocks, together, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Whose a program is: where its chunk's queries begin and how many there are, likewise its keys, the KV head, and
    the block of rows, below 0 if there is none. `together` heads run side by side, the last blocks first."""
    number, chunk = tl.program_id(0), tl.program_id(1)
    begin = tl.load(query_start + chunk)
    new = tl.load(query_start + chunk + 1) - begin
    key_begin = tl.load(key_start + chunk)
    context = tl.load(key_start + chunk + 1) - key_begin
    first_group = number // (together * blocks) * together
    side_by_side = tl.minimum(together, KV_HEADS - first_group)
    number -= first_group * blocks
    group = first_group + number % side_by_side
    block = tl.cdiv(new * GROUP, ROWS) - 1 - number // side_by_side
    return begin, new, key_begin, context, group, block


# none of these may compile a kernel anew: they change with the batch
@triton.jit(do_not_specialize=["window", "blocks", "together"])
def flash_kernel(
    q, keys, values, out, query_start, key_start, scale_log2, window, blocks, together,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, WINDOW: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """q `[tokens, KV_HEADS * GROUP, HEAD]`, keys and values `[context tokens, KV_HEADS, HEAD]`, out as q; grid
    (`blocks` of the longest chunk * KV_HEADS, chunks). `together` heads run side by side, the last blocks first, which
    have most to do; so many that their keys and values stay in the L2 cache."""
    begin, new, key_begin, context, group, block = own_block(
        query_start, key_start, blocks, together, KV_HEADS, GROUP, ROWS
    )  # fmt: skip
    if block < 0:
        return
    r = block * ROWS + tl.arange(0, ROWS)
    position = context - new + r // GROUP
    lowest = context - new + block * ROWS // GROUP
    highest = context - new + tl.minimum(new - 1, (block * ROWS + ROWS - 1) // GROUP)

    whole_from, start = 0, 0
    if WINDOW:
        start = tl.maximum(lowest - window + 1, 0) // KEYS * KEYS
        whole_from = tl.cdiv(tl.maximum(highest - window + 1, 0), KEYS) * KEYS
        whole_from = tl.minimum(tl.maximum(whole_from, start), tl.cdiv(highest + 1, KEYS) * KEYS)
    whole_to = tl.maximum((lowest + 1) // KEYS * KEYS, whole_from)

    dim = tl.arange(0, WIDTH)[None, :]
    row = (begin + r // GROUP) * (KV_HEADS * GROUP) + group * GROUP + r % GROUP
    at = row.to(tl.int64)[:, None] * HEAD + dim
    real = (r < new * GROUP)[:, None] & (dim < HEAD)
    query = tl.load(q + at, mask=real, other=0.0).to(out.dtype.element_ty)
    state = (
        tl.zeros([ROWS, WIDTH], tl.float32), tl.full([ROWS], -1.0e30, tl.float32), tl.zeros([ROWS], tl.float32)
    )  # fmt: skip
    if WINDOW:
        state = _walk(
            state, query, keys, values, key_begin, context, position, window, group, scale_log2,
            start, whole_from, True, WINDOW, KV_HEADS, HEAD, WIDTH, KEYS, 1,
        )  # fmt: skip
    state = _walk(
        state, query, keys, values, key_begin, context, position, window, group, scale_log2,
        whole_from, whole_to, False, WINDOW, KV_HEADS, HEAD, WIDTH, KEYS, STAGES,
    )  # fmt: skip
    total, _peak, mass = _walk(
        state, query, keys, values, key_begin, context, position, window, group, scale_log2,
        whole_to, highest + 1, True, WINDOW, KV_HEADS, HEAD, WIDTH, KEYS, 1,
    )  # fmt: skip
    tl.store(out + at, (total / mass[:, None]).to(out.dtype.element_ty), mask=real)
