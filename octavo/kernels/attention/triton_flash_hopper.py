"""The dense flash kernel of triton_flash.py for Hopper, scheduled by hand in Gluon: the exponentials of one tile run
while the tensor cores multiply the weights of the tile before it with its values.

    tile i     issue S = Q K(i)   issue O += P(i-1) V(i-1)   wait for S   P(i) = softmax(S)   wait for O, scale it

Tiles come through TMA, STAGES ahead: of contexts that were laid end to end, or pages as they lie
(triton_flash_pages.py). All that is written about rows, masks and the order of programs there holds here. Widths are
powers of two.
"""

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from octavo.kernels.attention.triton_flash import own_block

__all__ = ["hopper_flash_kernel", "hopper_tiles"]


def hopper_tiles(rows: Tensor, keys: int, width: int) -> TensorDescriptor:
    """Tiles of `keys` rows and `width` numbers of a matrix `[rows, numbers]`."""
    kind = {2: gl.float16}[rows.element_size()]  # bf16 alike
    layout = gl.NVMMASharedLayout.get_default_for([keys, width], kind)
    return TensorDescriptor(rows, list(rows.shape), list(rows.stride()), [keys, width], layout)


@gluon.jit
def _fetch(tiles, token, column, arrived, room, there):
    """Start bringing a tile to shared memory."""
    mbarrier.expect(arrived, tiles.block_type.nbytes, there)
    tma.async_copy_global_to_shared(tiles, [token, column], arrived, room, there)


@gluon.jit
def _first_row(table, begin, i, tiles, KEYS: gl.constexpr, PAGE_ROWS: gl.constexpr):
    """Where tile i begins among the rows that TMA sees; `tiles` of them can be looked up."""
    if PAGE_ROWS > 0:
        row = gl.load(table + gl.minimum(i, tiles - 1)) * PAGE_ROWS + begin
    else:
        row = begin + i * KEYS
    return row


@gluon.jit
def _softmax(
    score, peak, mass, start, position, window, scale_log2, MASKED: gl.constexpr, WINDOW: gl.constexpr,
    KEYS: gl.constexpr,
):  # fmt: skip
    """Weights of a tile whose first key is `start`, what the older ones shrink by, and the new maximum and sum."""
    if MASKED:
        key = start + gl.arange(0, KEYS, layout=gl.SliceLayout(0, score.type.layout))
        seen = key[None, :] <= position[:, None]
        if WINDOW:
            seen = seen & (key[None, :] > position[:, None] - window)
        score = gl.where(seen, score, float("-inf"))
    top = gl.maximum(peak, gl.max(score, 1) * scale_log2)
    weights = gl.exp2(score * scale_log2 - top[:, None])
    alpha = gl.exp2(peak - top)
    return weights, alpha, top, mass * alpha + gl.sum(weights, 1)


@gluon.jit
def _walk(
    state, query, none, source, rooms, first, position, window, scale_log2, begin, end, tiles, MASKED: gl.constexpr,
    WINDOW: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr, PAGE_ROWS: gl.constexpr,
):  # fmt: skip
    """Scores of tiles [begin, end), and the products with values of those one before."""
    total, weights, peak, mass = state
    key_tiles, value_tiles, table, key_begin, value_begin, column = source
    key_room, value_room, key_arrived, value_arrived = rooms
    for i in range(begin, end):
        slot, before = i % STAGES, (i - 1) % STAGES
        key_row = _first_row(table, key_begin, i + STAGES, tiles, KEYS, PAGE_ROWS)  # asked for long before it is needed
        value_row = _first_row(table, value_begin, i - 1 + STAGES, tiles, KEYS, PAGE_ROWS)
        score = warpgroup_mma(query, key_room.index(slot).permute((1, 0)), none, use_acc=False, is_async=True)
        mbarrier.wait(value_arrived.index(before), (i - 1) // STAGES & 1)
        total = warpgroup_mma(weights, value_room.index(before), total, is_async=True)
        score = warpgroup_mma_wait(1, deps=[score])
        fresh, alpha, peak, mass = _softmax(
            score, peak, mass, first + i * KEYS, position, window, scale_log2, MASKED, WINDOW, KEYS
        )  # fmt: skip
        fresh = gl.convert_layout(fresh.to(query.dtype), weights.type.layout)
        # the wait for the next tile stands here to keep the exponentials before it: a compiler moves none past a branch
        mbarrier.wait(key_arrived.index((i + 1) % STAGES), (i + 1) // STAGES & 1, i + 1 < tiles)
        total, _, weights = warpgroup_mma_wait(0, deps=[total, weights, fresh])
        gl.thread_barrier()  # both tiles are read by all warps: their room is free
        _fetch(key_tiles, key_row, column, key_arrived.index(slot), key_room.index(slot), i + STAGES < tiles)
        _fetch(
            value_tiles, value_row, column, value_arrived.index(before), value_room.index(before),
            i - 1 + STAGES < tiles,
        )  # fmt: skip
        total = total * gl.convert_layout(alpha, gl.SliceLayout(1, total.type.layout))[:, None]
    return total, weights, peak, mass


@gluon.jit
def _rooms(
    source, tiles, KIND: gl.constexpr, HEAD: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
    PAGE_ROWS: gl.constexpr, VALUE_ROW: gl.constexpr,
):  # fmt: skip
    """Where tiles come to and what says that they have; the first STAGES of them are on their way."""
    key_tiles, value_tiles, table, key_begin, _value_begin, column = source
    key_room = gl.allocate_shared_memory(KIND, [STAGES, KEYS, HEAD], key_tiles.layout)
    value_room = gl.allocate_shared_memory(KIND, [STAGES, KEYS, HEAD], value_tiles.layout)
    key_arrived = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    value_arrived = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(key_arrived.index(stage), 1)
        mbarrier.init(value_arrived.index(stage), 1)
    fence_async_shared()
    for stage in gl.static_range(STAGES):
        row = _first_row(table, key_begin, stage, tiles, KEYS, PAGE_ROWS)
        _fetch(key_tiles, row, column, key_arrived.index(stage), key_room.index(stage), stage < tiles)
        row += VALUE_ROW
        _fetch(value_tiles, row, column, value_arrived.index(stage), value_room.index(stage), stage < tiles)
    return key_room, value_room, key_arrived, value_arrived


@gluon.jit
def _first_tile(
    query, none, source, rooms, first, position, window, scale_log2, tiles, WINDOW: gl.constexpr, KEYS: gl.constexpr,
    STAGES: gl.constexpr, PAGE_ROWS: gl.constexpr,
):  # fmt: skip
    """Weights, maximum and sum of the first tile, whose room is filled anew; the second one has arrived."""
    key_tiles, _value_tiles, table, key_begin, _value_begin, column = source
    key_room, _value_room, key_arrived, _value_arrived = rooms
    rows_of: gl.constexpr = gl.SliceLayout(1, none.type.layout)
    mbarrier.wait(key_arrived.index(0), 0)
    score = warpgroup_mma(query, key_room.index(0).permute((1, 0)), none, use_acc=False, is_async=True)
    score = warpgroup_mma_wait(0, deps=[score])
    peak = gl.full([none.shape[0]], -1.0e30, gl.float32, layout=rows_of)
    mass = gl.zeros([none.shape[0]], gl.float32, layout=rows_of)
    weights, _alpha, peak, mass = _softmax(
        score, peak, mass, first, position, window, scale_log2, True, WINDOW, KEYS
    )  # fmt: skip
    gl.thread_barrier()
    row = _first_row(table, key_begin, STAGES, tiles, KEYS, PAGE_ROWS)
    _fetch(key_tiles, row, column, key_arrived.index(0), key_room.index(0), STAGES < tiles)
    mbarrier.wait(key_arrived.index(1 % STAGES), 1 // STAGES, tiles > 1)
    return weights, peak, mass


@gluon.jit
def _last_values(
    total, weights, rooms, first, context, tiles, WIDE: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr
):
    """The products with the last tile's values; nothing is on its way any more."""
    _key_room, value_room, key_arrived, value_arrived = rooms
    last = value_room.index((tiles - 1) % STAGES)
    mbarrier.wait(value_arrived.index((tiles - 1) % STAGES), (tiles - 1) // STAGES & 1)
    if first + tiles * KEYS > context:  # what lies behind is another context's: times zero it may still be NaN
        token = first + (tiles - 1) * KEYS + gl.arange(0, KEYS, layout=gl.SliceLayout(1, WIDE))
        tile = last.load(WIDE)
        last.store(gl.where((token < context)[:, None], tile, gl.zeros_like(tile)))
        fence_async_shared()
        gl.thread_barrier()
    total = warpgroup_mma(weights, last, total, is_async=True)
    total, _ = warpgroup_mma_wait(0, deps=[total, weights])
    for stage in gl.static_range(STAGES):
        mbarrier.invalidate(key_arrived.index(stage))
        mbarrier.invalidate(value_arrived.index(stage))
    return total


@gluon.jit(do_not_specialize=["window", "blocks", "together", "table_stride", "first_sequence"])
def hopper_flash_kernel(
    q, key_tiles, value_tiles, out, query_start, key_start, scale_log2, window, blocks, together, tables, table_stride,
    first_sequence, KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HEAD: gl.constexpr, ROWS: gl.constexpr,
    KEYS: gl.constexpr, WINDOW: gl.constexpr, STAGES: gl.constexpr, PAGE_ROWS: gl.constexpr, HEAD_ROWS: gl.constexpr,
    VALUE_ROW: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """As `flash_kernel`. With PAGE_ROWS tiles are pages of KEYS tokens, which the block tables name: a page has so many
    rows of HEAD numbers, a head HEAD_ROWS of them, its keys first and its values from VALUE_ROW on."""
    dtype: gl.constexpr = out.dtype.element_ty
    wide: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD, HEAD // 8], [num_warps, 1], [1, 0])
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, KEYS, 16])
    totals: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, HEAD, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, totals, 2)
    shared: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, HEAD], dtype)

    begin, new, key_begin, context, group, block = own_block(
        query_start, key_start, blocks, together, KV_HEADS, GROUP, ROWS
    )  # fmt: skip
    if block < 0:
        return
    lowest = context - new + block * ROWS // GROUP
    highest = context - new + gl.minimum(new - 1, (block * ROWS + ROWS - 1) // GROUP)
    first = 0
    if WINDOW:
        first = gl.maximum(lowest - window + 1, 0) // KEYS * KEYS
    tiles = gl.cdiv(highest + 1 - first, KEYS)
    whole = gl.maximum((lowest + 1) // KEYS, 1)
    if WINDOW:
        whole = 1
    table = tables + (first_sequence + gl.program_id(1)).to(gl.int64) * table_stride + first // KEYS
    value_begin, column = key_begin + first, group * HEAD
    if PAGE_ROWS > 0:
        value_begin, column = group * HEAD_ROWS + VALUE_ROW, 0
    key_begin = value_begin - VALUE_ROW

    source = (key_tiles, value_tiles, table, key_begin, value_begin, column)
    rooms = _rooms(source, tiles, dtype, HEAD, KEYS, STAGES, PAGE_ROWS, VALUE_ROW)

    r = block * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, wide))
    dim = gl.arange(0, HEAD, layout=gl.SliceLayout(0, wide))
    own = (begin + r // GROUP) * (KV_HEADS * GROUP) + group * GROUP + r % GROUP
    at = own.to(gl.int64)[:, None] * HEAD + dim[None, :]
    real = (r < new * GROUP)[:, None] & (dim < HEAD)[None, :]
    query = gl.allocate_shared_memory(dtype, [ROWS, HEAD], shared, gl.load(q + at, mask=real, other=0.0).to(dtype))
    fence_async_shared()
    r = block * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, scores))
    position = context - new + r // GROUP

    none = gl.zeros([ROWS, KEYS], gl.float32, layout=scores)
    weights, peak, mass = _first_tile(
        query, none, source, rooms, first, position, window, scale_log2, tiles, WINDOW, KEYS, STAGES, PAGE_ROWS
    )  # fmt: skip
    state = (
        gl.zeros([ROWS, HEAD], gl.float32, layout=totals), gl.convert_layout(weights.to(dtype), operand), peak, mass
    )  # fmt: skip
    state = _walk(
        state, query, none, source, rooms, first, position, window, scale_log2, 1, whole, tiles, False, WINDOW, KEYS,
        STAGES, PAGE_ROWS,
    )  # fmt: skip
    total, weights, peak, mass = _walk(
        state, query, none, source, rooms, first, position, window, scale_log2, whole, tiles, tiles, True, WINDOW, KEYS,
        STAGES, PAGE_ROWS,
    )  # fmt: skip

    total = _last_values(total, weights, rooms, first, context, tiles, wide, KEYS, STAGES)
    total = total / gl.convert_layout(mass, gl.SliceLayout(1, totals))[:, None]
    gl.store(out + at, gl.convert_layout(total.to(dtype), wide), mask=real)
