"""Store where what is done to the vectors is a matrix: RoPE -> x A - c -> encode -> planes, in one launch.

A program takes ROWS vectors that meet one matrix: keys or values of one KV head and as many tokens, or queries of all
heads of its group. The product runs on tensor cores, CHUNK dimensions at a time; of those that RoPE turns, a chunk and
its partners, so that every number is read once. fp32 factors are split into two tf32 numbers each, of which three
products are kept. Values in 16 bits that are only rotated need one: they and the signs of the rotation are exact.
"""

import triton
import triton.language as tl

from octavo.kernels.store.triton_wide import extremes
from octavo.kernels.triton_early import after_previous

__all__ = ["store_matrix_kernel"]


@triton.jit
def _part(source, at, FIRST: tl.constexpr, END: tl.constexpr, live, CHUNK: tl.constexpr):
    """`[ROWS, CHUNK]`: dimensions FIRST + i of the vectors that begin at `at`; zeros from END on."""
    dim = FIRST + tl.arange(0, CHUNK)[None, :]
    mask = live[:, None] if FIRST + CHUNK <= END else live[:, None] & (dim < END)
    return tl.load(source + at[:, None] + dim, mask=mask, other=0.0)


@triton.jit
def _matrix_rows(
    matrix, FIRST: tl.constexpr, END: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr, CHUNK: tl.constexpr
):
    """`[CHUNK, 2 HALF]`: rows FIRST + i of `[HEAD, HEAD]`, zeros from END on; column h HEAD / 2 + i at h HALF + i."""
    row, place = FIRST + tl.arange(0, CHUNK)[:, None], tl.arange(0, 2 * HALF)[None, :]
    if HEAD == 2 * HALF:
        at, inside = row * HEAD + place, (row < END) & (place < HEAD)
    else:
        at, inside = row * HEAD + place // HALF * (HEAD // 2) + place % HALF, (row < END) & (place % HALF < HEAD // 2)
    return tl.load(matrix + at, mask=inside, other=0.0)


@triton.jit
def _nearest_tf32(x):
    """fp32 -> the nearest number with 10 bits after the point. A NaN may become anything: x less that is still one."""
    return ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def _add_product(total, x, matrix, PRECISION: tl.constexpr):
    """total + x @ matrix: 16-bit factors as they are; of fp32 ones, x = a + b and matrix = c + d, all but b d."""
    if matrix.dtype != tl.float32:
        total = tl.dot(x, matrix, total)
    elif PRECISION == "split":
        x = x.to(tl.float32)
        x_high, matrix_high = _nearest_tf32(x), _nearest_tf32(matrix)
        total = tl.dot(x - x_high, matrix_high, total, input_precision="tf32")
        total = tl.dot(x_high, matrix - matrix_high, total, input_precision="tf32")
        total = tl.dot(x_high, matrix_high, total, input_precision="tf32")
    else:
        total = tl.dot(x.to(tl.float32), matrix, total, input_precision=PRECISION)
    return total


@triton.jit
def _product(
    source, matrix, cos, sin, position, at, live, ROPE_WIDTH: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Vectors after RoPE, times the matrix, fp32 `[ROWS, 2 HALF]`, in the order of places of `_matrix_rows`."""
    total = tl.zeros((ROWS, 2 * HALF), tl.float32)
    for first in tl.static_range(0, ROPE_WIDTH, CHUNK):  # dimension i < W pairs with i + W
        x = _part(source, at, first, ROPE_WIDTH, live, CHUNK).to(tl.float32)
        partner = _part(source, at + ROPE_WIDTH, first, ROPE_WIDTH, live, CHUNK).to(tl.float32)
        c = _part(cos, position * ROPE_WIDTH, first, ROPE_WIDTH, live, CHUNK)
        s = _part(sin, position * ROPE_WIDTH, first, ROPE_WIDTH, live, CHUNK)
        rows = _matrix_rows(matrix, first, ROPE_WIDTH, HEAD, HALF, CHUNK)
        total = _add_product(total, x * c - partner * s, rows, PRECISION)
        rows = _matrix_rows(matrix + ROPE_WIDTH * HEAD, first, ROPE_WIDTH, HEAD, HALF, CHUNK)
        total = _add_product(total, partner * c + x * s, rows, PRECISION)
    for first in tl.static_range(2 * ROPE_WIDTH, HEAD, CHUNK):
        rows = _matrix_rows(matrix, first, HEAD, HEAD, HALF, CHUNK)
        total = _add_product(total, _part(source, at, first, HEAD, live, CHUNK), rows, PRECISION)
    return total


@triton.jit
def _shifted(x, shift, HEAD: tl.constexpr, HALF: tl.constexpr):
    """x - c, for c `[HEAD]`."""
    place = tl.arange(0, 2 * HALF)
    at, inside = place // HALF * (HEAD // 2) + place % HALF, place % HALF < HEAD // 2
    return x - tl.load(shift + at, mask=inside, other=0.0)[None, :]


@triton.jit(do_not_specialize=["tokens"])
def store_matrix_kernel(
    q, k, v, out, cos, sin, positions, slots, pages, q_matrix, k_matrix, v_matrix, k_shift, v_shift,
    q_stride, k_stride, v_stride, tokens,
    STORE_KEYS: tl.constexpr, STORE_VALUES: tl.constexpr, KEY_AT: tl.constexpr, VALUE_AT: tl.constexpr,
    KEYS_SHARE: tl.constexpr, VALUES_SHARE: tl.constexpr, SHIFT_KEYS: tl.constexpr, SHIFT_VALUES: tl.constexpr,
    VALUE_FACTOR: tl.constexpr, ROPE_WIDTH: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    HEAD: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
    PAGE: tl.constexpr, PAGE_BYTES: tl.constexpr, HEAD_BYTES: tl.constexpr, PLAIN: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of q, then of k, then of v; heads run fastest, so that neighbours read the same tokens). Matrices
    `[KV_HEADS, HEAD, HEAD]`, one only where they SHARE it."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    q_blocks, kv_blocks = tl.cdiv(tokens * GROUP, ROWS) * KV_HEADS, tl.cdiv(tokens, ROWS) * KV_HEADS
    block = tl.program_id(0)
    after_previous(EARLY)
    if block < q_blocks:
        kv_head, row = block % KV_HEADS, block // KV_HEADS * ROWS + tl.arange(0, ROWS)
        live, token = row < tokens * GROUP, row // GROUP
        head = kv_head * GROUP + row % GROUP
        position = tl.load(positions + token, mask=live, other=0)
        matrix = q_matrix if KEYS_SHARE else q_matrix + kv_head * (HEAD * HEAD)
        turned = _product(
            q, matrix, cos, sin, position, token.to(tl.int64) * q_stride + head * HEAD, live, ROPE_WIDTH, HEAD, HALF,
            ROWS, CHUNK, PRECISION,
        )  # fmt: skip
        place = tl.arange(0, 2 * HALF)[None, :]
        at = (token.to(tl.int64) * HEADS + head)[:, None] * HEAD + place // HALF * (HEAD // 2) + place % HALF
        tl.store(out + at, turned, mask=live[:, None] & (place % HALF < HEAD // 2))
    else:
        is_key = block < q_blocks + kv_blocks
        block -= q_blocks + tl.where(is_key, 0, kv_blocks)
        kv_head, token = block % KV_HEADS, block // KV_HEADS * ROWS + tl.arange(0, ROWS)
        slot = tl.load(slots + token, mask=token < tokens, other=-1)
        live = slot >= 0
        start = pages + (slot // PAGE) * PAGE_BYTES + kv_head * HEAD_BYTES
        offset = (slot % PAGE).to(tl.int32)
        if is_key:
            position = tl.load(positions + token, mask=live, other=0)
            keys = k_matrix if KEYS_SHARE else k_matrix + kv_head * (HEAD * HEAD)
            x = _product(
                k, keys, cos, sin, position, token.to(tl.int64) * k_stride + kv_head * HEAD, live, ROPE_WIDTH, HEAD,
                HALF, ROWS, CHUNK, PRECISION,
            )  # fmt: skip
            if SHIFT_KEYS:
                x = _shifted(x, k_shift + kv_head * HEAD, HEAD, HALF)
            x = x.reshape(ROWS, 2, HALF)
            high, low = extremes(x, HEAD, HALF)
            STORE_KEYS(start, offset, x, high, low, live, HEAD, KEY_AT[0], KEY_AT[1], KEY_AT[2], PLAIN)
        else:
            values = v_matrix if VALUES_SHARE else v_matrix + kv_head * (HEAD * HEAD)
            x = _product(
                v, values, cos, sin, slot, token.to(tl.int64) * v_stride + kv_head * HEAD, live, 0, HEAD, HALF, ROWS,
                CHUNK, PRECISION,
            )  # fmt: skip
            x *= VALUE_FACTOR
            if SHIFT_VALUES:
                x = _shifted(x, v_shift + kv_head * HEAD, HEAD, HALF)
            x = x.reshape(ROWS, 2, HALF)
            high, low = extremes(x, HEAD, HALF)
            STORE_VALUES(start, offset, x, high, low, live, HEAD, VALUE_AT[0], VALUE_AT[1], VALUE_AT[2], PLAIN)
