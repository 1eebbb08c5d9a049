"""Pages in shared memory, in Gluon: how they lie there, how they are copied, and how the tensor cores get them.

Lanes copy along memory's lines, 16 bytes each, and read in the order of the tensor cores, which is that of
`integer_tiles.py` for codes. So a lane reads what others brought: a barrier has to follow each wait, and to stand
before a room is filled anew. Triton puts them there.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

__all__ = [
    "PRODUCT", "ROWS", "SCORES", "copy_keys", "copy_plane", "key_tile", "metadata", "parts_of_room", "room_layout",
    "wait", "weigh", "zero_planes_behind", "zero_rows_behind",
]  # fmt: skip

ROWS = gl.constexpr(8)
"""query rows of a program"""
PRODUCT = gl.constexpr(gl.NVMMADistributedLayout([2, 0], [1, 1], [16, 8]))
SCORES = gl.constexpr(gl.BlockedLayout([1, 2], [8, 4], [1, 1], [1, 0]))
"""half the rows of a tensor-core product"""
_PLANE = gl.constexpr(gl.BlockedLayout([2], [32], [1], [0]))


@gluon.constexpr_function
def _run(row_bytes, lanes):
    """Bytes that a lane asks for at once, where so many lanes share a row."""
    return min(16, row_bytes // lanes)


@gluon.constexpr_function
def room_layout(row, rows, kind, values):
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


@gluon.jit
def parts_of_room(room, PART: gl.constexpr, VALUES: gl.constexpr):
    """Pages `[STAGES, PAGE, row]` as parts of so many rows, in turn."""
    KIND: gl.constexpr = room.dtype
    ROW: gl.constexpr = room.shape[2]
    COUNT: gl.constexpr = room.shape[0] * room.shape[1] // PART
    return room._reinterpret(KIND, [COUNT, PART, ROW], room_layout(ROW, PART, KIND, VALUES))


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
def _copy_rows(plane, room):
    LAYOUT: gl.constexpr = _copying(room.shape[1], room.dtype.primitive_bitwidth)
    row = gl.arange(0, room.shape[0], layout=gl.SliceLayout(1, LAYOUT))[:, None]
    number = gl.arange(0, room.shape[1], layout=gl.SliceLayout(0, LAYOUT))[None, :]
    pointer = plane.to(gl.pointer_type(room.dtype)) + (row * room.shape[1] + number)
    async_copy.async_copy_global_to_shared(room, pointer, cache_modifier=".cg")


@gluon.jit
def copy_plane(plane, parts, slot, limit, PAGE: gl.constexpr):
    """Start copying the first `limit` rows of a plane, and those of their part, to page `slot` of a room that is seen
    as `parts`. What is behind stays what it was. Where a page is one part, it is copied whole."""
    PART: gl.constexpr = parts.shape[1]
    BYTES: gl.constexpr = PART * parts.shape[2] * parts.dtype.primitive_bitwidth // 8
    if PART == PAGE:
        _copy_rows(plane, parts.index(slot))
    else:
        for part in gl.static_range(0, PAGE // PART):
            if part * PART < limit:
                _copy_rows(plane + part * BYTES, parts.index(slot * (PAGE // PART) + part))


@gluon.jit
def copy_keys(head, parts, meta, slot, limit, KEY_AT: gl.constexpr, META_AT: gl.constexpr, PAGE: gl.constexpr):
    """Start copying the first `limit` of a page's keys (`copy_plane`), and all scales and midpoints."""
    copy_plane(head + KEY_AT, parts, slot, limit, PAGE)
    if META_AT is not None:
        _copy_rows(head + META_AT, meta.index(slot).slice(0, 4))
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
def key_tile(room, KEYS_OF: gl.constexpr):
    """The keys of a page as an operand of the tensor cores, `[HEAD, PAGE]`."""
    if KEYS_OF is None:
        tile = room.permute((1, 0)).load(gl.DotOperandLayout(1, PRODUCT, 2))
    else:
        PAGE: gl.constexpr = room.shape[0]
        BYTES: gl.constexpr = room.shape[1]
        tile = KEYS_OF(_key_codes(room, BYTES, PAGE), BYTES, PAGE, False)
        tile = gl.convert_layout(tile, gl.DotOperandLayout(1, PRODUCT, 8), assert_trivial=True)
    return tile


@gluon.jit
def weigh(total, weights, room, VALUES_OF: gl.constexpr, ARRANGE: gl.constexpr):
    """total `[HEAD, 8]` + values x weights; weights fp32 `[8, PAGE]`, with as many bits as the values have."""
    PAGE: gl.constexpr = room.shape[0]
    if VALUES_OF is None:
        by: gl.constexpr = gl.DotOperandLayout(1, PRODUCT, 2)
        tile = room.permute((1, 0)).load(gl.DotOperandLayout(0, PRODUCT, 2))
        high = weights.to(room.dtype)
        low = (weights - high.to(gl.float32)).to(room.dtype)
        total = mma_v2(tile, gl.convert_layout(high.permute(1, 0), by, assert_trivial=True), total)
        total = mma_v2(tile, gl.convert_layout(low.permute(1, 0), by, assert_trivial=True), total)
    else:
        BYTES: gl.constexpr = room.shape[1]
        even, odd = _value_codes(room, BYTES, PAGE)
        tile = VALUES_OF(even, odd, BYTES, PAGE, gl.float16, False)
        tile = gl.convert_layout(tile, gl.DotOperandLayout(0, PRODUCT, 4), assert_trivial=True)
        operand = ARRANGE(weights.to(gl.float16), ROWS, PAGE).permute(1, 0)
        operand = gl.convert_layout(operand, gl.DotOperandLayout(1, PRODUCT, 4), assert_trivial=True)
        total = mma_v2(tile, operand, total)
    return total


@gluon.jit
def wait(more, MORE: gl.constexpr, LAST: gl.constexpr):
    """Until no more copies are under way than MORE groups, or LAST where no later page is asked for."""
    if more:
        async_copy.wait_group(MORE)
    else:
        async_copy.wait_group(LAST)


@gluon.jit
def metadata(planes, number):
    """K's scale, its midpoint, V's scale or its midpoint (a page's planes 0 to 3): fp32 `[1, PAGE]`, the same in every
    query row."""
    plane = planes.index(number).load(gl.SliceLayout(0, SCORES))
    return plane.to(gl.float32)[None, :]


@gluon.jit
def zero_planes_behind(planes, first, limit):
    """Behind the context stands anything, which would be multiplied by zero: V's scales and midpoints from row `limit`
    on become zeros. Keys may be anything, their scores are masked."""
    PAGE: gl.constexpr = planes.shape[1]
    if limit < PAGE:
        n = gl.arange(0, PAGE, layout=_PLANE)
        for number in gl.static_range(2, 4):
            there = planes.index(first + number)
            there.store(gl.where(n < limit, there.load(_PLANE), 0.0).to(gl.float16))


@gluon.jit
def zero_rows_behind(room, limit):
    """Likewise the values themselves, where they are floats."""
    PAGE: gl.constexpr = room.shape[0]
    LAYOUT: gl.constexpr = _copying(room.shape[1], room.dtype.primitive_bitwidth)
    if limit < PAGE:
        for first in gl.static_range(0, PAGE, 16):  # few at once: all would not fit into registers
            n = first + gl.arange(0, 16, layout=gl.SliceLayout(1, LAYOUT))[:, None]
            there = room.slice(first, 16)
            tile = there.load(LAYOUT)
            there.store(gl.where(n < limit, tile, gl.zeros_like(tile)))
