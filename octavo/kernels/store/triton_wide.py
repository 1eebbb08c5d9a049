"""Store for many vectors: what store/triton.py does, cut so that no butterfly crosses threads.

A program is one warp and takes VECTORS vectors of q, k or v. They are loaded as halves, whose sum and difference are
the first butterfly; then a sum, or a difference, lies in the registers of few lanes (of one, with 16 vectors), where
the other butterflies are plain additions. Between that order and the order of memory lies one exchange each way.
"""

import triton
import triton.language as tl

from octavo.kernels.triton_early import after_previous

__all__ = ["extremes", "store_wide_kernel"]


@triton.jit
def extremes(x, HEAD: tl.constexpr, HALF: tl.constexpr):
    """Maximum and minimum of each vector of `[N, 2, HALF]`."""
    inside = tl.arange(0, HALF)[None, None, :] < HEAD // 2
    high = tl.max(tl.max(tl.where(inside, x, float("-inf")), 2), 1)
    return high, tl.min(tl.min(tl.where(inside, x, float("inf")), 2), 1)


@triton.jit
def _half(source, at, PART: tl.constexpr, live, HEAD: tl.constexpr, HALF: tl.constexpr):
    """fp32 `[VECTORS, HALF]`: dimensions PART * HEAD / 2 + i of the vectors that begin at `at`."""
    i = tl.arange(0, HALF)[None, :]
    mask = live[:, None] & (i < HEAD // 2)
    return tl.load(source + at[:, None] + (PART * (HEAD // 2) + i), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _turned(source, cos, sin, position, at, live, HEAD: tl.constexpr, HALF: tl.constexpr):
    """Both halves after RoPE, of which dimensions i and i + HEAD / 2 are a pair."""
    first, second = _half(source, at, 0, live, HEAD, HALF), _half(source, at, 1, live, HEAD, HALF)
    i = tl.arange(0, HALF)[None, :]
    angle, mask = position[:, None] * (HEAD // 2) + i, live[:, None] & (i < HEAD // 2)
    c = tl.load(cos + angle, mask=mask, other=1.0)
    s = tl.load(sin + angle, mask=mask, other=0.0)
    return first * c - second * s, second * c + first * s


@triton.jit
def _rotated(first, second, VECTORS: tl.constexpr, HALF: tl.constexpr):
    """x @ H as `[HALF, 2, VECTORS]`. With the vectors last, every lane holds a sum or a difference whole."""
    x = tl.join(first + second, first - second).permute(1, 2, 0)
    for bit in tl.static_range(0, 8):
        if 2**bit < HALF:
            low, high = x.reshape(HALF // 2**bit // 2, 2, 2**bit, 2 * VECTORS).permute(0, 2, 3, 1).split()
            x = tl.join(low + high, low - high).permute(0, 3, 1, 2)
    return x.reshape(HALF, 2, VECTORS) * (1.0 / (2 * HALF) ** 0.5)


@triton.jit
def _whole(first, second, TURN: tl.constexpr, VECTORS: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr):
    """`[VECTORS, 2, HALF]`, and its extremes."""
    if TURN:
        x = _rotated(first, second, VECTORS, HALF)
        high, low = tl.max(tl.max(x, 0), 0), tl.min(tl.min(x, 0), 0)
        x = x.permute(2, 1, 0)
    else:
        x = tl.join(first, second).permute(0, 2, 1)
        high, low = extremes(x, HEAD, HALF)
    return x, high, low


# the number of tokens changes with every step
@triton.jit(do_not_specialize=["tokens"])
def store_wide_kernel(
    q, k, v, out, cos, sin, positions, slots, pages, q_stride, k_stride, v_stride, tokens,
    STORE_KEYS: tl.constexpr, STORE_VALUES: tl.constexpr, KEY_AT: tl.constexpr, VALUE_AT: tl.constexpr,
    TURN_KEYS: tl.constexpr, TURN_VALUES: tl.constexpr, ROPE: tl.constexpr, HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr, VECTORS: tl.constexpr, PAGE: tl.constexpr,
    PAGE_BYTES: tl.constexpr, HEAD_BYTES: tl.constexpr, PLAIN: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of q, then of k, then of v), VECTORS heads each; head h of token t is vector t * heads + h."""
    q_blocks, kv_blocks = tl.cdiv(tokens * HEADS, VECTORS), tl.cdiv(tokens * KV_HEADS, VECTORS)
    block = tl.program_id(0)
    after_previous(EARLY)
    if block < q_blocks:
        vector = block * VECTORS + tl.arange(0, VECTORS)
        live = vector < tokens * HEADS
        token = vector // HEADS
        at = token.to(tl.int64) * q_stride + vector % HEADS * HEAD
        if ROPE:
            position = tl.load(positions + token, mask=live, other=0)
            first, second = _turned(q, cos, sin, position, at, live, HEAD, HALF)
        else:
            first, second = _half(q, at, 0, live, HEAD, HALF), _half(q, at, 1, live, HEAD, HALF)
        x, high, low = _whole(first, second, TURN_KEYS, VECTORS, HEAD, HALF)
        half = tl.arange(0, HALF)[None, None, :]
        dim = tl.arange(0, 2)[None, :, None] * (HEAD // 2) + half
        at_out = vector.to(tl.int64)[:, None, None] * HEAD + dim
        tl.store(out + at_out, x, mask=(half < HEAD // 2) & live[:, None, None])
    else:
        is_key = block < q_blocks + kv_blocks
        vector = (block - q_blocks - tl.where(is_key, 0, kv_blocks)) * VECTORS + tl.arange(0, VECTORS)
        inside = vector < tokens * KV_HEADS
        token, head = vector // KV_HEADS, vector % KV_HEADS
        slot = tl.load(slots + token, mask=inside, other=-1)
        live = slot >= 0
        start = pages + (slot // PAGE) * PAGE_BYTES + head * HEAD_BYTES
        row = (slot % PAGE).to(tl.int32)
        if is_key:
            at = token.to(tl.int64) * k_stride + head * HEAD
            if ROPE:
                position = tl.load(positions + token, mask=inside, other=0)
                first, second = _turned(k, cos, sin, position, at, inside, HEAD, HALF)
            else:
                first, second = _half(k, at, 0, inside, HEAD, HALF), _half(k, at, 1, inside, HEAD, HALF)
            x, high, low = _whole(first, second, TURN_KEYS, VECTORS, HEAD, HALF)
            STORE_KEYS(start, row, x, high, low, live, HEAD, KEY_AT[0], KEY_AT[1], KEY_AT[2], PLAIN)
        else:
            at = token.to(tl.int64) * v_stride + head * HEAD
            first, second = _half(v, at, 0, inside, HEAD, HALF), _half(v, at, 1, inside, HEAD, HALF)
            x, high, low = _whole(first, second, TURN_VALUES, VECTORS, HEAD, HALF)
            STORE_VALUES(start, row, x, high, low, live, HEAD, VALUE_AT[0], VALUE_AT[1], VALUE_AT[2], PLAIN)
