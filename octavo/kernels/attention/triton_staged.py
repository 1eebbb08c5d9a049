"""`attend_kernel` for up to 8 query rows a KV head, with pages that come through shared memory, in Gluon.

A program is one warp, as there, and computes the same. What differs is when bytes are asked for: there a page's bytes
are loaded into registers when their turn comes, and the warp waits; here a copy to shared memory is under way for every
page that the program will need next, STAGES pages ahead. Lanes copy along memory's lines and read in the order of the
tensor cores, so a lane reads what others brought: a barrier follows each wait, and stands before a room is filled anew.
Triton puts them there.

Since nothing but q and the pages from a sequence's first new token on is new in a step, a program begins to copy before
the launch before it has ended (EARLY, triton_early.py).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from octavo.kernels.attention.triton_softmax import softmax_step

__all__ = ["attend_staged_kernel"]

_ROWS = gl.constexpr(8)
_KNOWN = gl.constexpr(128)
_SCORES = gl.constexpr(gl.BlockedLayout([1, 2], [8, 4], [1, 1], [1, 0]))
"""half the rows of a tensor-core product"""
_TOTAL = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [1, 1], [1, 0]))
_TABLE = gl.constexpr(gl.BlockedLayout([4], [32], [1], [0]))
_PLANE = gl.constexpr(gl.BlockedLayout([2], [32], [1], [0]))
_PRODUCT = gl.constexpr(gl.NVMMADistributedLayout([2, 0], [1, 1], [16, 8]))


@gluon.constexpr_function
def _run(row_bytes, lanes):
    """Bytes that a lane asks for at once, where so many lanes share a row."""
    return min(16, row_bytes // lanes)


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


@gluon.constexpr_function
def _log2(power):
    return power.bit_length() - 1


@gluon.constexpr_function
def _room(row, rows, kind, values):
    """How a plane lies in shared memory: rows in turn, but some bits of an offset are flipped by bits of the row, such
    that lanes that are served at once read different banks. Keys: rows 2i and 2i + 1 of 128 bytes; values: rows 2c of
    8 in turn."""
    if kind != gl.int8:  # as ldmatrix wants it
        return gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    bits, row_bits = row.bit_length() - 1, rows.bit_length() - 1
    bases = [[0, 1 << bit] for bit in range(bits)] + [[1 << bit, 0] for bit in range(row_bits)]
    if values:
        if bits >= 6:
            bases[bits + 1] = [2, 32]
        bases[bits + 2] = [4, 64] if bits == 7 else [5, 0]
    elif bits == 7:
        bases[bits] = [1, 64]
    return gl.SharedLinearLayout(bases)


@gluon.constexpr_function
def _key_lanes(row_bytes, rows):
    """The bytes of `key_bytes` where a tile is `[rows, row_bytes]`: lane row = row % 8, lane column = its bytes."""
    run = _run(row_bytes, 4)
    registers = [[0, 1 << bit] for bit in range(run.bit_length() - 1)]
    registers += [[0, 64]] if row_bytes == 128 else []
    registers += [[1 << bit, 0] for bit in range(3, rows.bit_length() - 1)]
    return gl.DistributedLinearLayout(
        registers, [[0, run], [0, 2 * run], [1, 0], [2, 0], [4, 0]], [], [], [rows, row_bytes]
    )


@gluon.constexpr_function
def _value_lanes(row_bytes, rows):
    """The bytes of `value_bytes` where a tile is `[rows, row_bytes]`, even and odd rows side by side."""
    run = _run(row_bytes, 8)
    registers = [[0, 1 << bit] for bit in range(run.bit_length() - 1)] + [[1, 0]]
    registers += [[1 << bit, 0] for bit in range(3, rows.bit_length() - 1)]
    return gl.DistributedLinearLayout(
        registers, [[2, 0], [4, 0], [0, run], [0, 2 * run], [0, 4 * run]], [], [], [rows, row_bytes]
    )


@gluon.constexpr_function
def _copying(numbers, bits):
    """Lanes side by side along memory, 16 bytes each."""
    run = 128 // bits
    return gl.BlockedLayout([1, run], [32 * run // numbers, numbers // run], [1, 1], [1, 0])


@gluon.jit
def _copy_plane(plane, room):
    LAYOUT: gl.constexpr = _copying(room.shape[1], room.dtype.primitive_bitwidth)
    row = gl.arange(0, room.shape[0], layout=gl.SliceLayout(1, LAYOUT))[:, None]
    number = gl.arange(0, room.shape[1], layout=gl.SliceLayout(0, LAYOUT))[None, :]
    pointer = plane.to(gl.pointer_type(room.dtype)) + (row * room.shape[1] + number)
    async_copy.async_copy_global_to_shared(room, pointer, cache_modifier=".cg")


@gluon.jit
def _copy_keys(head, keys, meta, KEY_AT: gl.constexpr, META_AT: gl.constexpr):
    """Start copying a page's keys, and all scales and midpoints."""
    _copy_plane(head + KEY_AT, keys)
    if META_AT is not None:
        _copy_plane(head + META_AT, meta)
    async_copy.commit_group()


@gluon.jit
def _key_codes(room, BYTES: gl.constexpr, PAGE: gl.constexpr):
    """`key_bytes`"""
    RUN: gl.constexpr = _run(BYTES, 4)
    UNITS: gl.constexpr = BYTES // (4 * RUN)
    tile = room.load(_key_lanes(BYTES, PAGE)).reshape(PAGE // 8, 8, UNITS, 4, RUN)
    return tile.permute(0, 2, 1, 3, 4).reshape(PAGE // 8 * UNITS, 8, 4, RUN)


@gluon.jit
def _value_codes(room, BYTES: gl.constexpr, PAGE: gl.constexpr):
    """`value_bytes` of even and of odd rows"""
    RUN: gl.constexpr = _run(BYTES, 8)
    tile = room.load(_value_lanes(BYTES, PAGE)).reshape(PAGE // 8, 4, 2, 8, RUN)
    return tile.permute(0, 3, 1, 4, 2).split()


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
    tile = tile.reshape(HEAD // 32, 2, _ROWS, 4, 4).permute(2, 0, 3, 1, 4).reshape(_ROWS, HEAD)
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
    both = gl.join(high.to(COMPUTE), low.to(COMPUTE)).permute(2, 0, 1).reshape(2 * _ROWS, HEAD)
    operand = gl.convert_layout(both, gl.DotOperandLayout(0, _PRODUCT, 8 if COMPUTE == gl.int8 else 2))
    rows_of: gl.constexpr = gl.SliceLayout(1, _SCORES)
    return operand, gl.convert_layout(peak, rows_of), gl.convert_layout(gl.sum(tile, 1), rows_of)


@gluon.jit
def _key_tile(room, KEYS_OF: gl.constexpr):
    """The keys of a page as an operand of the tensor cores, `[HEAD, PAGE]`."""
    if KEYS_OF is None:
        tile = room.permute((1, 0)).load(gl.DotOperandLayout(1, _PRODUCT, 2))
    else:
        PAGE: gl.constexpr = room.shape[0]
        BYTES: gl.constexpr = room.shape[1]
        tile = KEYS_OF(_key_codes(room, BYTES, PAGE), BYTES, PAGE, False)
        tile = gl.convert_layout(tile, gl.DotOperandLayout(1, _PRODUCT, 8), assert_trivial=True)
    return tile


@gluon.jit
def _scores(query, keys):
    """Products of q's high and low parts with the keys: fp32 `[8, PAGE]`."""
    if query.dtype == gl.int8:  # exact
        none = gl.zeros([2 * _ROWS, keys.shape[1]], gl.int32, layout=_PRODUCT)
        both = mma_v2(query, keys, none).reshape(2, _ROWS, keys.shape[1]).permute(1, 2, 0)
        high, low = both.split()
        score = (high * 256 + low).to(gl.float32)
    else:
        none = gl.zeros([2 * _ROWS, keys.shape[1]], gl.float32, layout=_PRODUCT)
        both = mma_v2(query, keys, none).reshape(2, _ROWS, keys.shape[1]).permute(1, 2, 0)
        high, low = both.split()
        score = high + low
    return gl.convert_layout(score, _SCORES, assert_trivial=True)


@gluon.jit
def _weigh(total, weights, room, VALUES_OF: gl.constexpr, ARRANGE: gl.constexpr):
    """total `[HEAD, 8]` + values x weights; weights fp32 `[8, PAGE]`, with as many bits as the values have."""
    PAGE: gl.constexpr = room.shape[0]
    if VALUES_OF is None:
        by: gl.constexpr = gl.DotOperandLayout(1, _PRODUCT, 2)
        tile = room.permute((1, 0)).load(gl.DotOperandLayout(0, _PRODUCT, 2))
        high = weights.to(room.dtype)
        low = (weights - high.to(gl.float32)).to(room.dtype)
        total = mma_v2(tile, gl.convert_layout(high.permute(1, 0), by, assert_trivial=True), total)
        total = mma_v2(tile, gl.convert_layout(low.permute(1, 0), by, assert_trivial=True), total)
    else:
        BYTES: gl.constexpr = room.shape[1]
        even, odd = _value_codes(room, BYTES, PAGE)
        tile = VALUES_OF(even, odd, BYTES, PAGE, gl.float16, False)
        tile = gl.convert_layout(tile, gl.DotOperandLayout(0, _PRODUCT, 4), assert_trivial=True)
        operand = ARRANGE(weights.to(gl.float16), _ROWS, PAGE).permute(1, 0)
        operand = gl.convert_layout(operand, gl.DotOperandLayout(1, _PRODUCT, 4), assert_trivial=True)
        total = mma_v2(tile, operand, total)
    return total


@gluon.jit
def _wait(more, MORE: gl.constexpr, LAST: gl.constexpr):
    """Until no more copies are under way than MORE groups, or LAST where no later page is asked for."""
    if more:
        async_copy.wait_group(MORE)
    else:
        async_copy.wait_group(LAST)


@gluon.jit
def _plane(planes, slot, NUMBER: gl.constexpr):
    """K's scale, its midpoint, V's scale or its midpoint: fp32 `[1, PAGE]`, the same in every query row."""
    plane = planes.index(slot * 4 + NUMBER).load(gl.SliceLayout(0, _SCORES))
    return plane.to(gl.float32)[None, :]


@gluon.jit
def _zero_planes_behind(planes, slot, limit):
    """Behind the context stands anything, which would be multiplied by zero: V's scales and midpoints from row `limit`
    on become zeros. Keys may be anything, their scores are masked."""
    PAGE: gl.constexpr = planes.shape[1]
    if limit < PAGE:
        n = gl.arange(0, PAGE, layout=_PLANE)
        for number in gl.static_range(2, 4):
            there = planes.index(slot * 4 + number)
            there.store(gl.where(n < limit, there.load(_PLANE), 0.0).to(gl.float16))


@gluon.jit
def _zero_rows_behind(room, limit):
    """Likewise the values themselves, where they are floats."""
    PAGE: gl.constexpr = room.shape[0]
    LAYOUT: gl.constexpr = _copying(room.shape[1], room.dtype.primitive_bitwidth)
    if limit < PAGE:
        for first in gl.static_range(0, PAGE, 16):  # few at once: all would not fit into registers
            n = first + gl.arange(0, 16, layout=gl.SliceLayout(1, LAYOUT))[:, None]
            there = room.slice(first, 16)
            tile = there.load(LAYOUT)
            there.store(gl.where(n < limit, tile, gl.zeros_like(tile)))


@gluon.jit
def _butterflies(x, FIRST: gl.constexpr, LAST: gl.constexpr, LAYOUT: gl.constexpr):
    """The Hadamard transform along bits [FIRST, LAST) of the second index, which LAYOUT keeps within a lane; not
    normed."""
    ROWS: gl.constexpr = x.shape[0]
    WIDTH: gl.constexpr = x.shape[1]
    for bit in gl.static_range(FIRST, LAST):
        low, high = x.reshape(ROWS, WIDTH // 2 ** (bit + 1), 2, 2**bit).permute(0, 1, 3, 2).split()
        x = gl.join(low + high, low - high).permute(0, 1, 3, 2).reshape(ROWS, WIDTH)
        x = gl.convert_layout(x, LAYOUT, assert_trivial=True)
    return x


@gluon.jit
def _part(partial, stats, at, row, live, split, splits, total_rows, HEAD: gl.constexpr):
    """What a split left: its total, and its rows' peak and mass; nothing from `splits` on."""
    there = live & (row * 0 + split < splits)
    total = gl.load(partial + split * total_rows * HEAD + at, mask=there[:, None], other=0.0, cache_modifier=".cg")
    peak = gl.load(stats + (split * total_rows + row) * 2, mask=there, other=-1.0e30, cache_modifier=".cg")
    mass = gl.load(stats + (split * total_rows + row) * 2 + 1, mask=there, other=0.0, cache_modifier=".cg")
    return total, peak, mass


@gluon.jit
def _merge(total, peak, mass, partial, stats, arrived, row, live, split, splits, total_rows, HEAD: gl.constexpr):
    """As `merge_row_block`; total `[8, HEAD]`, peak and mass lie in _TOTAL's rows."""
    at = row[:, None] * HEAD + gl.arange(0, HEAD, layout=gl.SliceLayout(0, _TOTAL))[None, :]
    gl.store(partial + split * total_rows * HEAD + at, total, mask=live[:, None])
    gl.store(stats + (split * total_rows + row) * 2, peak, mask=live)
    gl.store(stats + (split * total_rows + row) * 2 + 1, mass, mask=live)
    gl.thread_barrier()
    last = gl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") == splits - 1
    if last:
        gl.store(arrived, 0)
        peak = gl.full([_ROWS], -1.0e30, gl.float32, layout=gl.SliceLayout(1, _TOTAL))
        mass = gl.zeros([_ROWS], gl.float32, layout=gl.SliceLayout(1, _TOTAL))
        total = gl.zeros([_ROWS, HEAD], gl.float32, layout=_TOTAL)
        for first in range(0, splits, 4):  # four at once, so that their loads do not wait in turn
            part0, peak0, mass0 = _part(partial, stats, at, row, live, first, splits, total_rows, HEAD)
            part1, peak1, mass1 = _part(partial, stats, at, row, live, first + 1, splits, total_rows, HEAD)
            part2, peak2, mass2 = _part(partial, stats, at, row, live, first + 2, splits, total_rows, HEAD)
            part3, peak3, mass3 = _part(partial, stats, at, row, live, first + 3, splits, total_rows, HEAD)
            top = gl.maximum(peak, gl.maximum(gl.maximum(peak0, peak1), gl.maximum(peak2, peak3)))
            shrink, peak = gl.exp2(peak - top), top
            peak0, peak1 = gl.exp2(peak0 - top), gl.exp2(peak1 - top)
            peak2, peak3 = gl.exp2(peak2 - top), gl.exp2(peak3 - top)
            mass = mass * shrink + mass0 * peak0 + mass1 * peak1 + mass2 * peak2 + mass3 * peak3
            total = total * shrink[:, None] + part0 * peak0[:, None] + part1 * peak1[:, None]
            total = total + part2 * peak2[:, None] + part3 * peak3[:, None]
    return last, total, mass


@gluon.jit(do_not_specialize=["table_stride", "total_rows", "window", "first_sequence"])
def attend_staged_kernel(
    q, out, partial, stats, arrived, query_start, contexts, tables, pages, scale_log2, table_stride, total_rows, window,
    first_sequence,
    KEYS_OF: gl.constexpr, VALUES_OF: gl.constexpr, ARRANGE: gl.constexpr, KEY_DIMS: gl.constexpr,
    VALUE_DIMS: gl.constexpr, KEY_AT: gl.constexpr, VALUE_AT: gl.constexpr, META_AT: gl.constexpr,
    KEY_ROW: gl.constexpr, VALUE_ROW: gl.constexpr, COMPUTE: gl.constexpr, KEY_FACTOR: gl.constexpr,
    UNROTATE: gl.constexpr, PAGE_BYTES: gl.constexpr, HEAD_BYTES: gl.constexpr, KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr, HEAD: gl.constexpr, PAGE: gl.constexpr, SPLIT: gl.constexpr, LEAST: gl.constexpr,
    WINDOW: gl.constexpr, STAGES: gl.constexpr, EARLY: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """As `attend_kernel`, for row blocks of 8; grid (KV_HEADS * row blocks, sequences, splits at most): programs that
    have nothing to do come last, since programs are dealt out to multiprocessors in turn."""
    blocks = gl.num_programs(0) // KV_HEADS
    split, group, sequence = gl.program_id(2), gl.program_id(0) // blocks, gl.program_id(1) + first_sequence
    first_row = gl.program_id(0) % blocks * _ROWS
    table = tables + sequence.to(gl.int64) * table_stride
    # page ids are on their way together with the lengths, which say which of them are wanted
    place = gl.arange(0, _KNOWN, layout=_TABLE)
    known = gl.load(table + place, mask=place < table_stride, other=0)
    context = gl.load(contexts + sequence)
    begin = gl.load(query_start + sequence)
    rows = (gl.load(query_start + sequence + 1) - begin) * GROUP
    if first_row >= rows:
        return
    lowest = context - rows // GROUP + first_row // GROUP
    end = context - rows // GROUP + (gl.minimum(rows, first_row + _ROWS) - 1) // GROUP + 1
    start_page = 0
    if WINDOW:
        start_page = gl.maximum(lowest - window + 1, 0) // PAGE
    count = gl.cdiv(end, PAGE) - start_page
    page_from, page_to, splits = start_page, start_page + count, 1
    if SPLIT:  # shares differ by a page at most
        splits = gl.minimum(gl.num_programs(2), gl.maximum(count // 8, 8))  # the grid is made for the longest context
        splits = gl.maximum(gl.minimum(count // LEAST, splits), 1)
        if split >= splits:
            return
        page_from = start_page + split * count // splits
        page_to = start_page + (split + 1) * count // splits

    AFFINE: gl.constexpr = META_AT is not None
    keys = gl.allocate_shared_memory(COMPUTE, [STAGES, PAGE, KEY_ROW], _room(KEY_ROW, PAGE, COMPUTE, False))
    values = gl.allocate_shared_memory(COMPUTE, [STAGES, PAGE, VALUE_ROW], _room(VALUE_ROW, PAGE, COMPUTE, True))
    meta = gl.allocate_shared_memory(gl.float16, [STAGES, 4, PAGE], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    planes = meta._reinterpret(gl.float16, [STAGES * 4, PAGE], gl.SwizzledSharedLayout(1, 1, 1, [0]))

    pages += group * HEAD_BYTES
    # what the launch before writes are q and rows of the pages from `fresh` on
    fresh = (context - rows // GROUP) // PAGE
    for stage in gl.static_range(STAGES):
        if EARLY:
            if page_from + stage >= fresh:
                gdc_wait()
        if page_from + stage < page_to:
            page = _page(known, place, table, page_from + stage)
            head = pages + page.to(gl.int64) * PAGE_BYTES
            _copy_keys(head, keys.index(stage), meta.index(stage), KEY_AT, META_AT)
            _copy_plane(head + VALUE_AT, values.index(stage))
            async_copy.commit_group()
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()

    query, factor, shift = _query(q, first_row, rows, begin, group, COMPUTE, KEY_DIMS, KV_HEADS, GROUP, HEAD)
    shift, factor = shift * scale_log2, factor * (scale_log2 * KEY_FACTOR)
    rows_of: gl.constexpr = gl.SliceLayout(1, _SCORES)
    r = first_row + gl.arange(0, _ROWS, layout=rows_of)
    position = context - rows // GROUP + r // GROUP
    n = gl.arange(0, PAGE, layout=gl.SliceLayout(0, _SCORES))
    total = gl.zeros([HEAD, _ROWS], gl.float32, layout=_PRODUCT)
    peak = gl.full([_ROWS], -1.0e30, gl.float32, layout=rows_of)
    mass = gl.zeros([_ROWS], gl.float32, layout=rows_of)
    offset = gl.zeros([_ROWS], gl.float32, layout=rows_of)
    upcoming = _page(known, place, table, gl.minimum(page_from + STAGES, page_to - 1))
    for index in range(page_from, page_to):
        slot = (index - page_from) % STAGES
        more = index + STAGES < page_to
        head = pages + upcoming.to(gl.int64) * PAGE_BYTES
        upcoming = gl.load(table + gl.minimum(index + STAGES + 1, page_to - 1))
        _wait(more, 2 * STAGES - 1, 1)
        score = _scores(query, _key_tile(keys.index(slot), KEYS_OF)) * factor[:, None]
        if AFFINE:
            _zero_planes_behind(planes, slot, context - index * PAGE)
            score = score * _plane(planes, slot, 0) + shift[:, None] * _plane(planes, slot, 1)
            scale, mid = _plane(planes, slot, 2), _plane(planes, slot, 3)
        else:
            scale, mid = score, score  # not read
        if more:
            _copy_keys(head, keys.index(slot), meta.index(slot), KEY_AT, META_AT)
        seen = (index * PAGE + n)[None, :] <= position[:, None]
        if WINDOW:
            seen = seen & ((index * PAGE + n)[None, :] > position[:, None] - window)
        score = gl.where(seen, score, float("-inf"))
        weights, alpha, peak, mass, offset = softmax_step(score, scale, mid, peak, mass, offset, AFFINE)
        _wait(more, 2 * STAGES - 1, 0)
        if COMPUTE != gl.int8:
            _zero_rows_behind(values.index(slot), context - index * PAGE)
        shrink = gl.convert_layout(alpha, gl.SliceLayout(0, _PRODUCT))
        total = _weigh(total * shrink[None, :], weights, values.index(slot), VALUES_OF, ARRANGE)
        if more:
            _copy_plane(head + VALUE_AT, values.index(slot))
            async_copy.commit_group()

    total = total.permute(1, 0)
    own: gl.constexpr = total.type.layout
    if AFFINE:
        total += gl.convert_layout(offset, gl.SliceLayout(1, own))[:, None]
    if UNROTATE:  # half of the bits now, the other half when splits are merged: it is linear
        total = _butterflies(total, 3, _log2(HEAD), own)
    total = gl.convert_layout(total, _TOTAL)
    peak = gl.convert_layout(peak, gl.SliceLayout(1, _TOTAL))
    mass = gl.convert_layout(mass, gl.SliceLayout(1, _TOTAL))
    r = first_row + gl.arange(0, _ROWS, layout=gl.SliceLayout(1, _TOTAL))
    live = r < rows
    row = (begin + r // GROUP) * (KV_HEADS * GROUP) + group * GROUP + r % GROUP
    last = True
    if SPLIT:
        arrived += gl.program_id(1) * gl.num_programs(0) + gl.program_id(0)
        last, total, mass = _merge(
            total, peak, mass, partial, stats, arrived, row, live, split, splits, total_rows, HEAD
        )
    if last:
        total = total / mass[:, None]
        if UNROTATE:
            total = _butterflies(total, 0, 3, _TOTAL) * (1.0 / HEAD**0.5)
        dims = VALUE_DIMS(gl.arange(0, HEAD, layout=gl.SliceLayout(0, _TOTAL)), HEAD, HEAD)
        gl.store(out + row[:, None] * HEAD + dims[None, :], total, mask=live[:, None])
