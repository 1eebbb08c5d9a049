"""`attend_kernel` for up to 8 query rows a KV head, with pages that come through shared memory, in Gluon.

A program is one warp, as there, and computes the same. What differs is when bytes are asked for: there a page's bytes
are loaded into registers when their turn comes, and the warp waits; here a copy to shared memory is under way for every
page that the program will need next, STAGES pages ahead.

Since nothing but q and the pages from a sequence's first new token on is new in a step, a program begins to copy before
the launch before it has ended (EARLY, triton_early.py).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from octavo.kernels.attention.triton_softmax import softmax_step
from octavo.kernels.attention.triton_staged_end import finish
from octavo.kernels.attention.triton_staged_pages import (
    PRODUCT,
    ROWS,
    SCORES,
    copy_keys,
    copy_plane,
    key_tile,
    metadata,
    parts_of_room,
    room_layout,
    wait,
    weigh,
    zero_planes_behind,
    zero_rows_behind,
)
from octavo.kernels.attention.triton_staged_shares import own_share, pages_of, parts_of

__all__ = ["attend_staged_kernel"]

_KNOWN = gl.constexpr(128)
_PART = gl.constexpr(16)
"""rows of a page that are copied, or not, if they are behind a context"""
_TABLE = gl.constexpr(gl.BlockedLayout([4], [32], [1], [0]))


@gluon.constexpr_function
def _lanes(run):
    """`[x, g, c, run]` with lane = g * 4 + c."""
    return gl.BlockedLayout([1, 1, 1, run], [1, 8, 4, 1], [1, 1, 1, 1], [3, 2, 1, 0])


@gluon.jit
def _lane_grid(OUTER: gl.constexpr, RUN: gl.constexpr, LAYOUT: gl.constexpr):
    """Index tensors x < OUTER, g < 8, c < 4, j < RUN that broadcast to a tensor of LAYOUT."""
    s3: gl.constexpr = gl.SliceLayout(3, LAYOUT)
    x = gl.arange(0, OUTER, layout=gl.SliceLayout(1, gl.SliceLayout(2, s3)))[:, None, None, None]
    g = gl.arange(0, 8, layout=gl.SliceLayout(0, gl.SliceLayout(2, s3)))[None, :, None, None]
    c = gl.arange(0, 4, layout=gl.SliceLayout(0, gl.SliceLayout(1, s3)))[None, None, :, None]
    j = gl.arange(0, RUN, layout=gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT))))[None, None, None, :]
    return x, g, c, j


@gluon.jit
def _page(known, place, table, index):
    """The page id at `index`; `known` are the first."""
    page = gl.sum(gl.where(place == index, known, 0), 0)
    if index >= _KNOWN:
        page = gl.load(table + index)
    return page


@gluon.jit
def _query(
    q, first_row, rows, begin, group, COMPUTE: gl.constexpr, KEY_DIMS: gl.constexpr, KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr, HEAD: gl.constexpr,
):  # fmt: skip
    """As `_load_query` and `_split_query`: the operand `[16, HEAD]`, and per row its factor and its sum."""
    x, g, c, j = _lane_grid(HEAD // 16, 4, _lanes(4))
    dims = KEY_DIMS(x // 2 * 32 + c * 8 + x % 2 * 4 + j, HEAD, HEAD)
    row = (begin + (first_row + g) // GROUP) * (KV_HEADS * GROUP) + group * GROUP + (first_row + g) % GROUP
    at = gl.max_contiguous(gl.multiple_of(row * HEAD + dims, [1, 1, 1, 4]), [1, 1, 1, 4])
    tile = gl.load(q + at, mask=(first_row + g < rows) & (dims >= 0), other=0.0)
    tile = tile.reshape(HEAD // 32, 2, ROWS, 4, 4).permute(2, 0, 3, 1, 4).reshape(ROWS, HEAD)
    peak = gl.maximum(gl.max(gl.abs(tile), 1), 1e-30)
    if COMPUTE == gl.int8:
        whole = (tile * (32512.0 / peak)[:, None] + 12582912.0) - 12582912.0
        high = gl.floor((whole + 128.0) * 0.00390625)
        low = whole - high * 256.0
        peak = peak / 32512.0
    else:
        whole = tile * (1.0 / peak)[:, None]
        high = whole.to(COMPUTE).to(gl.float32)
        low = whole - high
    both = gl.join(high.to(COMPUTE), low.to(COMPUTE)).permute(2, 0, 1).reshape(2 * ROWS, HEAD)
    operand = gl.convert_layout(both, gl.DotOperandLayout(0, PRODUCT, 8 if COMPUTE == gl.int8 else 2))
    rows_of: gl.constexpr = gl.SliceLayout(1, SCORES)
    return operand, gl.convert_layout(peak, rows_of), gl.convert_layout(gl.sum(tile, 1), rows_of)


@gluon.jit
def _scores(query, keys):
    """Products of q's high and low parts with the keys: fp32 `[8, PAGE]`."""
    if query.dtype == gl.int8:  # exact
        none = gl.zeros([2 * ROWS, keys.shape[1]], gl.int32, layout=PRODUCT)
        both = mma_v2(query, keys, none).reshape(2, ROWS, keys.shape[1]).permute(1, 2, 0)
        high, low = both.split()
        score = (high * 256 + low).to(gl.float32)
    else:
        none = gl.zeros([2 * ROWS, keys.shape[1]], gl.float32, layout=PRODUCT)
        both = mma_v2(query, keys, none).reshape(2, ROWS, keys.shape[1]).permute(1, 2, 0)
        high, low = both.split()
        score = high + low
    return gl.convert_layout(score, SCORES, assert_trivial=True)


@gluon.jit
def _attend_pages(
    query, factor, shift, position, window, context, table, pages, upcoming, page_from, page_to, rooms,
    KEYS_OF: gl.constexpr, VALUES_OF: gl.constexpr, ARRANGE: gl.constexpr, KEY_AT: gl.constexpr,
    VALUE_AT: gl.constexpr, META_AT: gl.constexpr, PAGE_BYTES: gl.constexpr, HEAD: gl.constexpr, WINDOW: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """The softmax along pages [page_from, page_to), of which the first STAGES are on their way; `upcoming` is the id of
    the one after those. Total `[HEAD, 8]`, and peak, mass and offset of each row."""
    keys, values, meta, planes, key_parts, value_parts = rooms
    PAGE: gl.constexpr = keys.shape[1]
    AFFINE: gl.constexpr = META_AT is not None
    rows_of: gl.constexpr = gl.SliceLayout(1, SCORES)
    n = gl.arange(0, PAGE, layout=gl.SliceLayout(0, SCORES))
    total = gl.zeros([HEAD, ROWS], gl.float32, layout=PRODUCT)
    peak = gl.full([ROWS], -1.0e30, gl.float32, layout=rows_of)
    mass = gl.zeros([ROWS], gl.float32, layout=rows_of)
    offset = gl.zeros([ROWS], gl.float32, layout=rows_of)
    for index in range(page_from, page_to):
        slot = (index - page_from) % STAGES
        first_plane = slot * (planes.shape[0] // STAGES)
        more = index + STAGES < page_to
        left = context - (index + STAGES) * PAGE
        head = pages + upcoming.to(gl.int64) * PAGE_BYTES
        upcoming = gl.load(table + gl.minimum(index + STAGES + 1, page_to - 1))
        wait(more, 2 * STAGES - 1, 1)
        score = _scores(query, key_tile(keys.index(slot), KEYS_OF)) * factor[:, None]
        if AFFINE:
            zero_planes_behind(planes, first_plane, context - index * PAGE)
            score = score * metadata(planes, first_plane + 0) + shift[:, None] * metadata(planes, first_plane + 1)
            scale, mid = metadata(planes, first_plane + 2), metadata(planes, first_plane + 3)
        else:
            scale, mid = score, score  # not read
        if more:
            copy_keys(head, key_parts, meta, slot, left, KEY_AT, META_AT, PAGE)
        seen = (index * PAGE + n)[None, :] <= position[:, None]
        if WINDOW:
            seen = seen & ((index * PAGE + n)[None, :] > position[:, None] - window)
        score = gl.where(seen, score, float("-inf"))
        weights, alpha, peak, mass, offset = softmax_step(score, scale, mid, peak, mass, offset, AFFINE)
        wait(more, 2 * STAGES - 1, 0)
        if values.dtype != gl.int8:
            zero_rows_behind(values.index(slot), context - index * PAGE)
        shrink = gl.convert_layout(alpha, gl.SliceLayout(0, PRODUCT))
        total = weigh(total * shrink[None, :], weights, values.index(slot), VALUES_OF, ARRANGE)
        if more:
            copy_plane(head + VALUE_AT, value_parts, slot, left, PAGE)
            async_copy.commit_group()
    return total, peak, mass, offset


@gluon.jit
def _attend_segment(
    q, written, query_start, contexts, tables, pages, scale_log2, table_stride, window, sequence, group, first_row,
    page_from, page_to, share, rooms,
    KEYS_OF: gl.constexpr, VALUES_OF: gl.constexpr, ARRANGE: gl.constexpr, KEY_DIMS: gl.constexpr,
    VALUE_DIMS: gl.constexpr, KEY_AT: gl.constexpr, VALUE_AT: gl.constexpr, META_AT: gl.constexpr,
    KEY_FACTOR: gl.constexpr, UNROTATE: gl.constexpr, PAGE_BYTES: gl.constexpr, KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr, HEAD: gl.constexpr, SHARED: gl.constexpr, WINDOW: gl.constexpr, STAGES: gl.constexpr,
    EARLY: gl.constexpr,
):  # fmt: skip
    """Rows from `first_row` on of one sequence and KV head, with its pages [page_from, page_to)."""
    keys, _values, meta, _planes, key_parts, value_parts = rooms
    PAGE: gl.constexpr = keys.shape[1]
    table = tables + sequence.to(gl.int64) * table_stride
    # page ids are on their way together with the lengths
    place = gl.arange(0, _KNOWN, layout=_TABLE)
    known = gl.load(table + place, mask=place < table_stride, other=0)
    context = gl.load(contexts + sequence)
    begin = gl.load(query_start + sequence)
    rows = (gl.load(query_start + sequence + 1) - begin) * GROUP
    # what the launch before writes are q and rows of the pages from `fresh` on
    fresh = (context - rows // GROUP) // PAGE
    for stage in gl.static_range(STAGES):
        if EARLY:
            if page_from + stage >= fresh:
                gdc_wait()
        if page_from + stage < page_to:
            page = _page(known, place, table, page_from + stage)
            head = pages + page.to(gl.int64) * PAGE_BYTES
            left = context - (page_from + stage) * PAGE
            copy_keys(head, key_parts, meta, stage, left, KEY_AT, META_AT, PAGE)
            copy_plane(head + VALUE_AT, value_parts, stage, left, PAGE)
            async_copy.commit_group()
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()

    query, factor, shift = _query(q, first_row, rows, begin, group, keys.dtype, KEY_DIMS, KV_HEADS, GROUP, HEAD)
    shift, factor = shift * scale_log2, factor * (scale_log2 * KEY_FACTOR)
    position = context - rows // GROUP + (first_row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, SCORES))) // GROUP
    upcoming = _page(known, place, table, gl.minimum(page_from + STAGES, page_to - 1))
    state = _attend_pages(
        query, factor, shift, position, window, context, table, pages, upcoming, page_from, page_to, rooms,
        KEYS_OF, VALUES_OF, ARRANGE, KEY_AT, VALUE_AT, META_AT, PAGE_BYTES, HEAD, WINDOW, STAGES,
    )  # fmt: skip
    finish(
        state, written, begin, first_row, rows, group, sequence, share, VALUE_DIMS, UNROTATE, META_AT is not None,
        SHARED, KV_HEADS, GROUP, HEAD,
    )  # fmt: skip


@gluon.jit
def _rooms(
    KEY_ROW: gl.constexpr, VALUE_ROW: gl.constexpr, COMPUTE: gl.constexpr, PAGE: gl.constexpr, PART: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Where pages come to: keys, values and what goes with them, the latter as pages and as planes, and keys and values
    as parts of so many rows."""
    keys = gl.allocate_shared_memory(COMPUTE, [STAGES, PAGE, KEY_ROW], room_layout(KEY_ROW, PAGE, COMPUTE, False))
    values = gl.allocate_shared_memory(COMPUTE, [STAGES, PAGE, VALUE_ROW], room_layout(VALUE_ROW, PAGE, COMPUTE, True))
    meta = gl.allocate_shared_memory(gl.float16, [STAGES, 4, PAGE], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    planes = meta._reinterpret(gl.float16, [STAGES * 4, PAGE], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    return keys, values, meta, planes, parts_of_room(keys, PART, False), parts_of_room(values, PART, True)


@gluon.jit(do_not_specialize=["table_stride", "window", "first_sequence", "sequences"])
def attend_staged_kernel(
    q, out, partial, stats, arrived, query_start, contexts, tables, pages, scale_log2, table_stride, window,
    first_sequence, sequences,
    KEYS_OF: gl.constexpr, VALUES_OF: gl.constexpr, ARRANGE: gl.constexpr, KEY_DIMS: gl.constexpr,
    VALUE_DIMS: gl.constexpr, KEY_AT: gl.constexpr, VALUE_AT: gl.constexpr, META_AT: gl.constexpr,
    KEY_ROW: gl.constexpr, VALUE_ROW: gl.constexpr, COMPUTE: gl.constexpr, KEY_FACTOR: gl.constexpr,
    UNROTATE: gl.constexpr, PAGE_BYTES: gl.constexpr, HEAD_BYTES: gl.constexpr, KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr, HEAD: gl.constexpr, PAGE: gl.constexpr, SHARED: gl.constexpr, LEAST: gl.constexpr,
    PAD: gl.constexpr, WINDOW: gl.constexpr, STAGES: gl.constexpr, EARLY: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """As `attend_kernel`, for row blocks of 8; grid (KV_HEADS * row blocks, sequences), or with SHARED (KV_HEADS * row
    blocks, programs among which all pages are dealt out: triton_staged_shares.py)."""
    blocks = gl.num_programs(0) // KV_HEADS
    group, first_row = gl.program_id(0) // blocks, gl.program_id(0) % blocks * ROWS
    # each part waits for a barrier: a microsecond or two where programs are few, nothing where many live side by side
    rooms = _rooms(KEY_ROW, VALUE_ROW, COMPUTE, PAGE, PAGE if SHARED else _PART, STAGES)
    if PAD > 0:  # nobody reads it: programs of this size are fewer on a multiprocessor
        pad = gl.allocate_shared_memory(gl.int8, [PAD, 1024], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    written = (out, partial, stats, arrived)
    pages += group * HEAD_BYTES
    if SHARED:
        cursor, end, sequence, base, deal = own_share(
            contexts, query_start, first_sequence, sequences, window, PAGE, LEAST, WINDOW
        )
        while cursor < end:
            first_page, count = pages_of(contexts, query_start, first_sequence + sequence, window, PAGE, WINDOW)
            page_from = first_page + cursor - base
            page_to = first_page + gl.minimum(count, end - base)
            _attend_segment(
                q, written, query_start, contexts, tables, pages, scale_log2, table_stride, window,
                first_sequence + sequence, group, first_row, page_from, page_to, parts_of(base, count, cursor, deal),
                rooms, KEYS_OF, VALUES_OF, ARRANGE, KEY_DIMS, VALUE_DIMS, KEY_AT, VALUE_AT,
                META_AT, KEY_FACTOR, UNROTATE, PAGE_BYTES, KV_HEADS, GROUP, HEAD, SHARED, WINDOW, STAGES, EARLY,
            )  # fmt: skip
            base += count
            cursor = base
            sequence += 1
    else:
        sequence = gl.program_id(1) + first_sequence
        first_page, count = pages_of(contexts, query_start, sequence, window, PAGE, WINDOW)
        _attend_segment(
            q, written, query_start, contexts, tables, pages, scale_log2, table_stride, window,
            sequence, group, first_row, first_page, first_page + count, (0, 1, 0, 0),
            rooms, KEYS_OF, VALUES_OF, ARRANGE, KEY_DIMS, VALUE_DIMS, KEY_AT, VALUE_AT,
            META_AT, KEY_FACTOR, UNROTATE, PAGE_BYTES, KV_HEADS, GROUP, HEAD, SHARED, WINDOW, STAGES, EARLY,
        )  # fmt: skip
    if PAD > 0:
        pad._keep_alive()
