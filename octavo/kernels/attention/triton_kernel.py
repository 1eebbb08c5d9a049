"""Paged attention in Triton: one program a (sequence, KV head and block of its query rows, split of the context).

ROWS query rows share a KV head: row r of a chunk is new token r // GROUP, query head r % GROUP. Each program runs over
its share of the pages with an online softmax; of the programs of one row block the last to finish merges the splits.

Per-row scale s and midpoint m of an affine scheme never enter the element loop:
    score = s_n (q . k_n) + m_n sum(q)          out = sum (p_n s_n) v_n + sum p_n m_n
The running maximum is that of score + log2 of V's scale, so the weights p_n s_n that go to the tensor cores lie in
[0, 1] whatever the scales are, and fp16 holds them.
"""

import triton
import triton.language as tl

from octavo.kernels.attention.triton_merge import merge_row_block
from octavo.kernels.attention.triton_softmax import softmax_step
from octavo.kv.lanes import lane_grid, lanes_last

__all__ = ["attend_kernel", "hadamard_rows"]


@triton.jit
def _stack(first, second, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Two `[ROWS, WIDTH]` -> `[2 ROWS, WIDTH]`, one above the other."""
    return tl.join(first, second).permute(2, 0, 1).reshape(2 * ROWS, WIDTH)


@triton.jit
def _unstack(stacked, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    return stacked.reshape(2, ROWS, WIDTH).permute(1, 2, 0).split()


@triton.jit
def _load_query(
    q, first_row, rows, begin, group, KEY_DIMS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """fp32 `[ROWS, WIDTH]`, dimensions in the order of key tiles; loaded as the int8 operand lies in a warp."""
    x, g, c, j = lane_grid(WIDTH // 16, ROWS, 4)
    dims = KEY_DIMS(x // 2 * 32 + c * 8 + x % 2 * 4 + j, HEAD, WIDTH)
    real = (dims >= 0) & (dims < HEAD) & (first_row + g < rows)
    row = (begin + (first_row + g) // GROUP) * (KV_HEADS * GROUP) + group * GROUP + (first_row + g) % GROUP
    at = tl.max_contiguous(tl.multiple_of(row * HEAD + dims, [1, 1, 1, 4]), [1, 1, 1, 4])
    tile = lanes_last(tl.load(q + at, mask=real, other=0.0)).reshape(WIDTH // 32, 2, ROWS, 4, 4)
    return tile.permute(2, 0, 3, 1, 4).reshape(ROWS, WIDTH)


@triton.jit
def _split_query(q, ROWS: tl.constexpr, WIDTH: tl.constexpr, COMPUTE: tl.constexpr):
    """fp32 q -> its operand (high parts above low parts, as COMPUTE) and the factor of each row."""
    if COMPUTE == tl.float32:
        operand, factor = q, tl.full([ROWS], 1.0, tl.float32)
    elif COMPUTE == tl.int8:  # about 16 bits: q = (256 high + low) * factor
        peak = tl.maximum(tl.max(tl.abs(q), 1), 1e-30)
        whole = (q * (32512.0 / peak)[:, None] + 12582912.0) - 12582912.0
        high = tl.floor((whole + 128.0) * 0.00390625)
        low = whole - high * 256.0
        operand, factor = _stack(high.to(tl.int8), low.to(tl.int8), ROWS, WIDTH), peak / 32512.0
    else:
        factor = tl.maximum(tl.max(tl.abs(q), 1), 1e-30)
        unit = q * (1.0 / factor)[:, None]
        high = unit.to(COMPUTE)
        operand = _stack(high, (unit - high.to(tl.float32)).to(COMPUTE), ROWS, WIDTH)
    return operand, factor


@triton.jit
def _scores(q, keys, ROWS: tl.constexpr, TILE: tl.constexpr, COMPUTE: tl.constexpr):
    if COMPUTE == tl.float32:
        score = tl.dot(q, keys, input_precision="ieee")
    elif COMPUTE == tl.int8:
        high, low = _unstack(tl.dot(q, keys, out_dtype=tl.int32), ROWS, TILE)
        score = (high * 256 + low).to(tl.float32)
    else:
        high, low = _unstack(tl.dot(q, keys, out_dtype=tl.float32), ROWS, TILE)
        score = high + low
    return score


@triton.jit
def _metadata(
    head, OFFSET: tl.constexpr, token, limit, ROWS: tl.constexpr, TILE: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """fp16 per row of the tile -> fp32 `[ROWS, TILE]`, the same in every query row, loaded as scores lie in a warp."""
    x, g, c, j = lane_grid(TILE // 8, ROWS, 2)
    n = x * 8 + c * 2 + j + g * 0
    pointer = (head + OFFSET).to(tl.pointer_type(tl.float16)) + token + n
    if MASKED:
        number = tl.load(pointer, mask=n < limit, other=0.0)
    else:
        number = tl.load(pointer)
    return lanes_last(number).permute(1, 0, 2, 3).reshape(ROWS, TILE).to(tl.float32)


@triton.jit
def _weigh(
    weights, values, total, alpha, ARRANGE: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    COMPUTE: tl.constexpr, FLIP: tl.constexpr,
):  # fmt: skip
    """total * alpha + weights @ values. The tensor cores know no fewer than 16 rows: FLIP makes 8 query rows columns,
    where 8 suffice; else the upper half of the operand carries what rounding left."""
    if COMPUTE == tl.float32:
        total = tl.dot(weights, values, total * alpha[:, None], input_precision="ieee")
    elif FLIP:
        operand = tl.trans(ARRANGE(weights.to(COMPUTE), ROWS, TILE))
        total = tl.dot(values, operand, total * alpha[None, :])
    elif ROWS == 8:
        high = weights.to(COMPUTE)
        operand = ARRANGE(_stack(high, (weights - high.to(tl.float32)).to(COMPUTE), ROWS, TILE), 2 * ROWS, TILE)
        both = tl.join(alpha, alpha).permute(1, 0).reshape(16)
        total = tl.dot(operand, values, total * both[:, None])
    else:
        total = tl.dot(ARRANGE(weights.to(COMPUTE), ROWS, TILE), values, total * alpha[:, None])
    return total


@triton.jit
def _prefetch(address, BYTES: tl.constexpr):
    """Start bringing a head's block, which is contiguous, from memory to L2: one instruction of one thread."""
    tl.inline_asm_elementwise(
        "{ .reg .pred p; .reg .u32 t; mov.u32 t, %tid.x; setp.eq.u32 p, t, 0;"
        " @p cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
        "=r,l,r", [address.to(tl.int64), BYTES], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _correction(
    a, b, cos, sin, row, live, first, limit, PAIRS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """`a_w cos(n theta_w) + b_w sin(n theta_w)` over all pairs w, times log2(e), for keys n from `first` on: fp32
    `[ROWS, TILE]`. In fp32 throughout, since a and b can be thousands; few pairs at a time, since operands of products
    outside the tensor cores live in registers."""
    CHUNK: tl.constexpr = 16
    n = tl.arange(0, TILE)
    term = tl.zeros([ROWS, TILE], tl.float32)
    for pair in range(0, PAIRS, CHUNK):
        w = pair + tl.arange(0, CHUNK)
        own, own_at = live[:, None] & (w < PAIRS)[None, :], row[:, None] * PAIRS + w[None, :]
        angle_at = (first + n)[None, :] * PAIRS + w[:, None]
        there = (w < PAIRS)[:, None] & (n < (limit if MASKED else TILE))[None, :]
        weight, turn = tl.load(a + own_at, mask=own, other=0.0), tl.load(cos + angle_at, mask=there, other=0.0)
        term = tl.dot(weight, turn, term, input_precision="ieee")
        weight, turn = tl.load(b + own_at, mask=own, other=0.0), tl.load(sin + angle_at, mask=there, other=0.0)
        term = tl.dot(weight, turn, term, input_precision="ieee")
    return term * 1.4426950408889634


@triton.jit
def _tile_step(
    state, q, factor, shift, correction, head, start, token: tl.constexpr, context, position, window,
    MASKED: tl.constexpr,
    LOAD_KEYS: tl.constexpr, LOAD_VALUES: tl.constexpr, ARRANGE: tl.constexpr, KEY_AT: tl.constexpr,
    VALUE_AT: tl.constexpr,
    KEY_COMPUTE: tl.constexpr, VALUE_COMPUTE: tl.constexpr, KEY_AFFINE: tl.constexpr, VALUE_AFFINE: tl.constexpr,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, PLAIN: tl.constexpr,
    WINDOW: tl.constexpr, FLIP: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Take rows [token, token + TILE) of a page, whose first row is the sequence's number `start`, into the softmax."""
    total, peak, mass, offset = state
    limit = context - start - token
    n = tl.arange(0, TILE)
    if PAIRS > 0:  # before the tile is loaded, which takes most registers
        a, b, cos, sin, row, live = correction
        term = _correction(a, b, cos, sin, row, live, start + token, limit, PAIRS, ROWS, TILE, MASKED)
    rows = limit if MASKED else TILE
    keys = LOAD_KEYS(head, KEY_AT[0], token, rows, HEAD, WIDTH, TILE, KEY_COMPUTE, PLAIN)
    values = LOAD_VALUES(head, VALUE_AT[0], token, rows, HEAD, WIDTH, TILE, VALUE_COMPUTE, PLAIN)
    score = _scores(q, keys, ROWS, TILE, KEY_COMPUTE) * factor[:, None]
    if KEY_AFFINE:
        scale = _metadata(head, KEY_AT[1], token, limit, ROWS, TILE, MASKED)
        mid = _metadata(head, KEY_AT[2], token, limit, ROWS, TILE, MASKED)
        score = score * scale + shift[:, None] * mid
    if PAIRS > 0:
        score += term
    if MASKED:
        seen = (start + token + n)[None, :] <= position[:, None]
        if WINDOW:
            seen = seen & ((start + token + n)[None, :] > position[:, None] - window)
        score = tl.where(seen, score, float("-inf"))
    if VALUE_AFFINE:
        scale = _metadata(head, VALUE_AT[1], token, limit, ROWS, TILE, MASKED)
        mid = _metadata(head, VALUE_AT[2], token, limit, ROWS, TILE, MASKED)
    else:
        scale, mid = score, score  # not read
    weights, alpha, peak, mass, offset = softmax_step(score, scale, mid, peak, mass, offset, VALUE_AFFINE)
    total = _weigh(weights, values, total, alpha, ARRANGE, ROWS, TILE, VALUE_COMPUTE, FLIP)
    return total, peak, mass, offset


@triton.jit
def hadamard_rows(x, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """x @ H for the orthonormal Sylvester matrix: butterflies over the bits of the index, in any order."""
    for bit in tl.static_range(0, 9):
        if 2**bit < WIDTH:
            low, high = x.reshape(ROWS, WIDTH // 2 ** (bit + 1), 2, 2**bit).permute(0, 1, 3, 2).split()
            x = tl.join(low + high, low - high).permute(0, 1, 3, 2).reshape(ROWS, WIDTH)
    return x * (1.0 / WIDTH**0.5)


@triton.jit
def _finish(
    state, out, partial, stats, arrived, row, live, split, splits, total_rows, VALUE_DIMS: tl.constexpr,
    VALUE_AFFINE: tl.constexpr, UNROTATE: tl.constexpr, SPLIT: tl.constexpr, FLIP: tl.constexpr, BOTH: tl.constexpr,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Merge what the splits of a context left, undo V's rotation, write."""
    total, peak, mass, offset = state
    if FLIP:
        total = tl.trans(total)
    if BOTH == 2:
        high, low = _unstack(total, ROWS, WIDTH)
        total = high + low
    if VALUE_AFFINE:
        total += offset[:, None]
    last = True
    if SPLIT:
        arrived += tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
        last, total, mass = merge_row_block(
            total, peak, mass, partial, stats, arrived, row, live, split, splits, total_rows, ROWS, WIDTH
        )
    if last:
        total = total / mass[:, None]
        if UNROTATE:
            total = hadamard_rows(total, ROWS, WIDTH)
        dims = VALUE_DIMS(tl.arange(0, WIDTH), HEAD, WIDTH)
        real = live[:, None] & ((dims >= 0) & (dims < HEAD))[None, :]
        tl.store(out + row[:, None] * HEAD + dims[None, :], total, mask=real)


# none of these may compile a kernel anew: they change with the batch and with the length of a context
@triton.jit(do_not_specialize=["table_stride", "total_rows", "window", "first_sequence"])
def attend_kernel(
    q, a, b, cos, sin, out, partial, stats, arrived, query_start, contexts, tables, pages, scale_log2,
    table_stride, window, first_sequence, total_rows,
    LOAD_KEYS: tl.constexpr, LOAD_VALUES: tl.constexpr, ARRANGE: tl.constexpr, KEY_DIMS: tl.constexpr,
    VALUE_DIMS: tl.constexpr,
    KEY_AT: tl.constexpr, VALUE_AT: tl.constexpr, KEY_COMPUTE: tl.constexpr, VALUE_COMPUTE: tl.constexpr,
    KEY_AFFINE: tl.constexpr, VALUE_AFFINE: tl.constexpr, KEY_FACTOR: tl.constexpr, UNROTATE: tl.constexpr,
    PAGE_BYTES: tl.constexpr, HEAD_BYTES: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    PAGE: tl.constexpr, SPLIT: tl.constexpr, WINDOW: tl.constexpr, PLAIN: tl.constexpr, STAGES: tl.constexpr,
    PREFETCH: tl.constexpr, FLIP: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """q fp32 `[T, KV_HEADS * GROUP, HEAD]`, out alike, of any type; grid (splits at most, KV_HEADS * row blocks,
    sequences from `first_sequence` on).

    A context of fewer pages than the grid has splits has one for each page: the programs left over end at once."""
    blocks = tl.num_programs(1) // KV_HEADS
    split, group, sequence = tl.program_id(0), tl.program_id(1) // blocks, tl.program_id(2) + first_sequence
    first_row = tl.program_id(1) % blocks * ROWS
    context = tl.load(contexts + sequence)  # on its way together with query_start
    begin = tl.load(query_start + sequence)
    rows = (tl.load(query_start + sequence + 1) - begin) * GROUP
    if first_row >= rows:
        return
    r = first_row + tl.arange(0, ROWS)
    live = r < rows
    position = context - rows // GROUP + r // GROUP
    lowest = context - rows // GROUP + first_row // GROUP
    end = context - rows // GROUP + (tl.minimum(rows, first_row + ROWS) - 1) // GROUP + 1
    row = (begin + r // GROUP) * (KV_HEADS * GROUP) + group * GROUP + r % GROUP

    start_page = 0
    if WINDOW:
        start_page = tl.maximum(lowest - window + 1, 0) // PAGE
    count = tl.cdiv(end, PAGE) - start_page
    page_from, page_to, splits = start_page, start_page + count, 1
    if SPLIT:  # shares differ by a page at most
        splits = tl.minimum(count, tl.num_programs(0))
        if split >= splits:
            return
        page_from = start_page + split * count // splits
        page_to = start_page + (split + 1) * count // splits
    # [page_from, whole_from)  some rows no longer see the beginning     [whole_from, whole_to)  all rows see all of it
    # [whole_to, page_to)      the end of the context, or later than some rows
    whole_to = tl.maximum(page_from, tl.minimum(page_to, (lowest + 1) // PAGE))
    whole_from = page_from
    if WINDOW:
        whole_from = tl.minimum(tl.maximum(tl.cdiv(tl.maximum(end - window, 0), PAGE), page_from), whole_to)
    before = whole_from - page_from
    edges = before + page_to - whole_to

    query = _load_query(q, first_row, rows, begin, group, KEY_DIMS, KV_HEADS, GROUP, HEAD, WIDTH, ROWS)
    shift = tl.sum(query, 1) * scale_log2
    operand, factor = _split_query(query, ROWS, WIDTH, KEY_COMPUTE)
    factor = factor * (scale_log2 * KEY_FACTOR)

    correction = (a, b, cos, sin, row, live)
    BOTH: tl.constexpr = 2 if ROWS == 8 and VALUE_COMPUTE != tl.float32 and not FLIP else 1
    table = tables + sequence.to(tl.int64) * table_stride
    total = tl.zeros([WIDTH, ROWS] if FLIP else [BOTH * ROWS, WIDTH], tl.float32)
    peak = tl.full([ROWS], -1.0e30, tl.float32)
    mass, offset = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    pages += group * HEAD_BYTES
    page = tl.load(table + tl.minimum(whole_from, page_to - 1))
    later = tl.load(table + tl.minimum(whole_from + 1, page_to - 1))
    edge = tl.load(table + tl.minimum(tl.where(before > 0, page_from, whole_to), page_to - 1))
    for index in tl.range(whole_from, whole_to, num_stages=STAGES):
        if STAGES == 1:
            # page ids are read two pages ahead, and a page is on its way to L2 while the one before it is worked on
            upcoming = tl.load(table + tl.minimum(index + 2, page_to - 1))
            if PREFETCH:
                _prefetch(pages + later.to(tl.int64) * PAGE_BYTES, HEAD_BYTES)
        else:  # Triton's own pipeline, which wants to see the load of the page id
            page = tl.load(table + index)
            upcoming = later
        head = pages + page.to(tl.int64) * PAGE_BYTES
        for part in tl.static_range(PAGE // TILE):
            total, peak, mass, offset = _tile_step(
                (total, peak, mass, offset), operand, factor, shift, correction, head, index * PAGE, part * TILE,
                context, position, window, False, LOAD_KEYS, LOAD_VALUES, ARRANGE, KEY_AT, VALUE_AT, KEY_COMPUTE,
                VALUE_COMPUTE, KEY_AFFINE, VALUE_AFFINE, HEAD, WIDTH, ROWS, TILE, PLAIN, WINDOW, FLIP, PAIRS,
            )  # fmt: skip
        page, later = later, upcoming
    for number in tl.range(0, edges, num_stages=1):
        index = tl.where(number < before, page_from, whole_to - before) + number
        upcoming = tl.where(number + 1 < before, page_from, whole_to - before) + number + 1
        head = pages + edge.to(tl.int64) * PAGE_BYTES
        edge = tl.load(table + tl.minimum(upcoming, page_to - 1))
        for part in tl.static_range(PAGE // TILE):
            total, peak, mass, offset = _tile_step(
                (total, peak, mass, offset), operand, factor, shift, correction, head, index * PAGE, part * TILE,
                context, position, window, True, LOAD_KEYS, LOAD_VALUES, ARRANGE, KEY_AT, VALUE_AT, KEY_COMPUTE,
                VALUE_COMPUTE, KEY_AFFINE, VALUE_AFFINE, HEAD, WIDTH, ROWS, TILE, PLAIN, WINDOW, FLIP, PAIRS,
            )  # fmt: skip

    _finish(
        (total, peak, mass, offset), out, partial, stats, arrived, row, live, split, splits, total_rows, VALUE_DIMS,
        VALUE_AFFINE, UNROTATE, SPLIT, FLIP, BOTH, HEAD, WIDTH, ROWS,
    )  # fmt: skip
