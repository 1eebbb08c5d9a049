"""The end of attention over staged pages, in Gluon: parts are merged as in triton_merge.py, the output written."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from octavo.kernels.attention.triton_staged_pages import ROWS
from octavo.kernels.attention.triton_staged_shares import part_at

__all__ = ["finish"]

_TOTAL = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [1, 1], [1, 0]))


@gluon.constexpr_function
def _log2(power):
    return power.bit_length() - 1


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
def _part(partial, stats, number, share, lane, live, HEAD: gl.constexpr):
    """What a program left of a context: its total, and its rows' peak and mass; nothing behind the last."""
    there = live & (lane * 0 + number < share[1])
    row = (part_at(number, share) * gl.num_programs(0) + gl.program_id(0)) * ROWS + lane
    at = row[:, None] * HEAD + gl.arange(0, HEAD, layout=gl.SliceLayout(0, _TOTAL))[None, :]
    total = gl.load(partial + at, mask=there[:, None], other=0.0, cache_modifier=".cg")
    peak = gl.load(stats + row * 2, mask=there, other=-1.0e30, cache_modifier=".cg")
    mass = gl.load(stats + row * 2 + 1, mask=there, other=0.0, cache_modifier=".cg")
    return total, peak, mass


@gluon.jit
def _merge(total, peak, mass, partial, stats, arrived, lane, live, share, HEAD: gl.constexpr):
    """As `merge_row_block`; total `[8, HEAD]`, peak and mass lie in _TOTAL's rows."""
    row = (share[3] * gl.num_programs(0) + gl.program_id(0)) * ROWS + lane
    at = row[:, None] * HEAD + gl.arange(0, HEAD, layout=gl.SliceLayout(0, _TOTAL))[None, :]
    gl.store(partial + at, total, mask=live[:, None])
    gl.store(stats + row * 2, peak, mask=live)
    gl.store(stats + row * 2 + 1, mass, mask=live)
    gl.thread_barrier()
    last = gl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") == share[1] - 1
    if last:
        gl.store(arrived, 0)
        peak = gl.full([ROWS], -1.0e30, gl.float32, layout=gl.SliceLayout(1, _TOTAL))
        mass = gl.zeros([ROWS], gl.float32, layout=gl.SliceLayout(1, _TOTAL))
        total = gl.zeros([ROWS, HEAD], gl.float32, layout=_TOTAL)
        for number in range(0, share[1], 4):  # four at once, so that their loads do not wait in turn
            part0, peak0, mass0 = _part(partial, stats, number, share, lane, live, HEAD)
            part1, peak1, mass1 = _part(partial, stats, number + 1, share, lane, live, HEAD)
            part2, peak2, mass2 = _part(partial, stats, number + 2, share, lane, live, HEAD)
            part3, peak3, mass3 = _part(partial, stats, number + 3, share, lane, live, HEAD)
            top = gl.maximum(peak, gl.maximum(gl.maximum(peak0, peak1), gl.maximum(peak2, peak3)))
            shrink, peak = gl.exp2(peak - top), top
            peak0, peak1 = gl.exp2(peak0 - top), gl.exp2(peak1 - top)
            peak2, peak3 = gl.exp2(peak2 - top), gl.exp2(peak3 - top)
            mass = mass * shrink + mass0 * peak0 + mass1 * peak1 + mass2 * peak2 + mass3 * peak3
            total = total * shrink[:, None] + part0 * peak0[:, None] + part1 * peak1[:, None]
            total = total + part2 * peak2[:, None] + part3 * peak3[:, None]
    return last, total, mass


@gluon.jit
def finish(
    state, written, begin, first_row, rows, group, sequence, share, VALUE_DIMS: gl.constexpr,
    UNROTATE: gl.constexpr, AFFINE: gl.constexpr, SHARED: gl.constexpr, KV_HEADS: gl.constexpr, GROUP: gl.constexpr,
    HEAD: gl.constexpr,
):  # fmt: skip
    """Merge what the programs of a context left, undo V's rotation, write."""
    out, partial, stats, arrived = written
    total, peak, mass, offset = state
    total = total.permute(1, 0)
    own: gl.constexpr = total.type.layout
    if AFFINE:
        total += gl.convert_layout(offset, gl.SliceLayout(1, own))[:, None]
    if UNROTATE:  # half of the bits now, the other half when parts are merged: it is linear
        total = _butterflies(total, 3, _log2(HEAD), own)
    total = gl.convert_layout(total, _TOTAL)
    peak = gl.convert_layout(peak, gl.SliceLayout(1, _TOTAL))
    mass = gl.convert_layout(mass, gl.SliceLayout(1, _TOTAL))
    lane = gl.arange(0, ROWS, layout=gl.SliceLayout(1, _TOTAL))
    live = first_row + lane < rows
    last = True
    if SHARED:
        if share[1] > 1:
            arrived += sequence * gl.num_programs(0) + gl.program_id(0)
            last, total, mass = _merge(total, peak, mass, partial, stats, arrived, lane, live, share, HEAD)
    if last:
        total = total / mass[:, None]
        if UNROTATE:
            total = _butterflies(total, 0, 3, _TOTAL) * (1.0 / HEAD**0.5)
        r = first_row + lane
        row = (begin + r // GROUP) * (KV_HEADS * GROUP) + group * GROUP + r % GROUP
        dims = VALUE_DIMS(gl.arange(0, HEAD, layout=gl.SliceLayout(0, _TOTAL)), HEAD, HEAD)
        gl.store(out + row[:, None] * HEAD + dims[None, :], total, mask=live[:, None])
