"""Vector instructions for Numba, as LLVM IR: what its loop vectoriser does not find by itself.

All pointers are plain addresses (int64) of fp32 numbers, all strides are in bytes. LLVM splits the wide vector types
into whatever registers the machine has, so the same code is right everywhere; `COLUMNS` is chosen so that it is also
fast. Functions that Numba compiles have a name of their own each: two closures of one name would be mixed up when one
process loads kernels from disk that different processes compiled.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from octavo.kv.row_codec import instruction

__all__ = ["COLUMNS", "LANES", "TILE", "exp2", "hadamard16", "product", "softmax_row", "transpose16"]

LANES = 16
COLUMNS = 64 if llvm.get_host_cpu_features().get("avx512f") else 16
TILE = 64

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)


def _vector(lanes: int) -> ir.VectorType:
    return ir.VectorType(_F32, lanes)


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(_pointer(builder, address, kind), align=4)


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, _pointer(builder, address, value.type), align=4)


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    kind = ir.VectorType(scalar.type, lanes)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(_I32, 0))
    return _shuffle(builder, one, one, [0] * lanes)


def _shuffle(builder: Any, first: Any, second: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


def _panel(queries: int, columns: int) -> Callable[..., None]:
    """`c[queries, columns] = keep * c + a[queries, depth] @ b[depth, columns]` in registers; sums run over depth in
    order. Where `keep` is 0 what c held does not count."""

    @instruction
    def panel(typingctx: Any, a: Any, lda: Any, b: Any, ldb: Any, c: Any, ldc: Any, depth: Any, keep: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            a, lda, b, ldb, c, ldc, depth, keep = args
            kind = _vector(columns)
            rows = [ir.Constant(_I64, q) for q in range(queries)]
            outs = [builder.add(c, builder.mul(q, ldc)) for q in rows]
            lefts = [builder.add(a, builder.mul(q, lda)) for q in rows]
            sums = [cgutils.alloca_once(builder, kind) for _ in rows]
            for total in sums:
                builder.store(ir.Constant(kind, [0.0] * columns), total)
            with builder.if_then(cgutils.is_not_null(builder, keep)):
                for q, (out, total) in enumerate(zip(outs, sums, strict=True)):
                    factor = _load(builder, builder.add(keep, ir.Constant(_I64, 4 * q)), _F32)
                    builder.store(builder.fmul(_load(builder, out, kind), _splat(builder, factor, columns)), total)
            with cgutils.for_range(builder, depth) as loop:
                right = _load(builder, builder.add(b, builder.mul(loop.index, ldb)), kind)
                step = builder.mul(loop.index, ir.Constant(_I64, 4))
                for left, total in zip(lefts, sums, strict=True):
                    weight = _splat(builder, _load(builder, builder.add(left, step), _F32), columns)
                    builder.store(_fma(builder, weight, right, builder.load(total)), total)
            for out, total in zip(outs, sums, strict=True):
                _store(builder, builder.load(total), out)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), codegen

    return panel


_six, _three, _one = (_panel(queries, COLUMNS) for queries in (6, 3, 1))
_six_narrow, _one_narrow = (_panel(queries, LANES) for queries in (6, 1))


@njit(error_model="numpy")
def product(a, lda, b, ldb, c, ldc, rows, columns, depth, keep):
    """`c = a @ b`, or `keep[row] * c + a @ b` where `keep` is the address of a factor for each row and not 0.

    `columns` is a multiple of LANES, padding included. The bits of a number do not depend on which panel made it.
    """
    wide = columns // COLUMNS * COLUMNS
    row = 0
    while row < rows:
        left, out, factor = a + row * lda, c + row * ldc, keep + 4 * row if keep else keep
        step = 6 if rows - row >= 6 else (3 if rows - row >= 3 else 1)
        for column in range(0, wide, COLUMNS):
            right, at = b + 4 * column, out + 4 * column
            if step == 6:
                _six(left, lda, right, ldb, at, ldc, depth, factor)
            elif step == 3:
                _three(left, lda, right, ldb, at, ldc, depth, factor)
            else:
                _one(left, lda, right, ldb, at, ldc, depth, factor)
        for column in range(wide, columns, LANES):
            right, at = b + 4 * column, out + 4 * column
            if step == 6:
                _six_narrow(left, lda, right, ldb, at, ldc, depth, factor)
            else:
                for i in range(step):
                    mine = factor + 4 * i if factor else factor
                    _one_narrow(left + i * lda, lda, right, ldb, at + i * ldc, ldc, depth, mine)
        row += step


@instruction
def transpose16(typingctx: Any, source: Any, source_stride: Any, target: Any, target_stride: Any) -> Any:
    """A 16 x 16 block: four rounds, each swapping one bit of the row number with one of the lane number."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, source_stride, target, target_stride = args
        at = [ir.Constant(_I64, i) for i in range(LANES)]
        rows = [_load(builder, builder.add(source, builder.mul(i, source_stride)), _vector(LANES)) for i in at]
        for bit in (1, 2, 4, 8):
            for i in (i for i in range(LANES) if not i & bit):
                low, high = rows[i], rows[i | bit]
                rows[i] = _shuffle(builder, low, high, [(n ^ bit) + LANES if n & bit else n for n in range(LANES)])
                rows[i | bit] = _shuffle(builder, low, high, [n + LANES if n & bit else n | bit for n in range(LANES)])
        for i, row in zip(at, rows, strict=True):
            _store(builder, row, builder.add(target, builder.mul(i, target_stride)))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@instruction
def hadamard16(typingctx: Any, address: Any) -> Any:
    """16 numbers in place, times the unnormalised Sylvester matrix of order 16."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = _load(builder, args[0], _vector(LANES))
        for bit in (1, 2, 4, 8):
            swapped = _shuffle(builder, vector, vector, [n ^ bit for n in range(LANES)])
            signs = ir.Constant(_vector(LANES), [-1.0 if n & bit else 1.0 for n in range(LANES)])
            vector = builder.fadd(builder.fmul(vector, signs), swapped)
        _store(builder, vector, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _exp2(builder: Any, x: Any) -> Any:
    """2^x for x <= 0, 0 below -126, NaN for NaN; x is fp32 or a vector of it. Cephes exp2f's polynomial, 2 ulp."""
    whole_kind = _I32 if x.type == _F32 else ir.VectorType(_I32, x.type.count)

    def const(kind: Any, value: float) -> Any:
        return ir.Constant(kind, value if kind in (_F32, _I32) else [value] * kind.count)

    tiny = builder.fcmp_ordered("<", x, const(x.type, -126.0))
    clamped = builder.select(tiny, const(x.type, -126.0), x)
    magic = const(x.type, 12582912.0)  # 1.5 * 2^23: adding it rounds to a whole number, kept in the low bits
    shifted = builder.fadd(clamped, magic)
    part = builder.fsub(clamped, builder.fsub(shifted, magic))
    total = const(x.type, 1.535336188319500e-4)
    for term in (1.339887440266574e-3, 9.618437357674640e-3, 5.550332471162809e-2, 2.402264791363012e-1,
                 6.931472028550421e-1, 1.0):  # fmt: skip
        total = _fma(builder, total, part, const(x.type, term))
    whole = builder.shl(builder.bitcast(shifted, whole_kind), const(whole_kind, 23))
    power = builder.bitcast(builder.add(builder.bitcast(total, whole_kind), whole), x.type)
    return builder.select(tiny, const(x.type, 0.0), power)


@instruction
def exp2(typingctx: Any, number: Any) -> Any:
    """2^number for an fp32 <= 0, the same bits as inside `softmax_row`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _exp2(builder, args[0])

    return types.float32(types.float32), codegen


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _fold(builder: Any, vector: Any, combine: Callable[[Any, Any, Any], Any]) -> Any:
    """Halve until one number is left: a fixed order."""
    lanes = vector.type.count
    while lanes > 1:
        lanes //= 2
        low = _shuffle(builder, vector, vector, list(range(lanes)))
        high = _shuffle(builder, vector, vector, list(range(lanes, 2 * lanes)))
        vector = combine(builder, low, high)
    return builder.extract_element(vector, ir.Constant(_I32, 0))


@instruction
def softmax_row(typingctx: Any, scores: Any, first: Any, end: Any, state: Any) -> Any:
    """One query, one tile of 64 scores in units of log2: the running softmax.

    Columns outside [first, end) get weight 0. `state` holds the running maximum and sum. Overwrites the scores with
    their weights 2^(score - max), updates the state, returns what sums made so far must be multiplied by.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scores, first, end, state = args
        raw = _load(builder, scores, _vector(TILE))
        lane = ir.Constant(ir.VectorType(_I32, TILE), list(range(TILE)))
        first, end = (_splat(builder, builder.trunc(edge, _I32), TILE) for edge in (first, end))
        seen = builder.and_(builder.icmp_signed(">=", lane, first), builder.icmp_signed("<", lane, end))
        raw = builder.select(seen, raw, ir.Constant(raw.type, [float("-inf")] * TILE))
        sum_at = builder.add(state, ir.Constant(_I64, 4))
        before = _load(builder, state, _F32)
        peak = _larger(builder, _fold(builder, raw, _larger), before)
        keep = _exp2(builder, builder.fsub(before, peak))
        weights = _exp2(builder, builder.fsub(raw, _splat(builder, peak, TILE)))
        added = _fold(builder, weights, lambda build, a, b: build.fadd(a, b))
        _store(builder, weights, scores)
        _store(builder, peak, state)
        _store(builder, _fma(builder, _load(builder, sum_at, _F32), keep, added), sum_at)
        return keep

    return types.float32(types.int64, types.int64, types.int64, types.int64), codegen
