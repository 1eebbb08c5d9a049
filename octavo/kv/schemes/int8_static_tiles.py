"""The tile codec of `int8-static` for Triton: the tiles of `int8` without a scale and a midpoint per row."""

from dataclasses import replace

import triton
import triton.language as tl

from octavo.kv.schemes.int8_tiles import INT8_TILES
from octavo.kv.schemes.integer_tiles import bytes_pointer, round_half_even

__all__ = ["INT8_STATIC_TILES"]


@triton.jit
def _store(
    head, token, x, high, low, keep, HEAD: tl.constexpr, DATA: tl.constexpr, SCALE: tl.constexpr,
    MID: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    half = tl.arange(0, x.shape[2])[None, None, :]
    codes = round_half_even(tl.minimum(tl.maximum(x, -127.0), 127.0))
    at = token[:, None, None] * HEAD + tl.arange(0, 2)[None, :, None] * (HEAD // 2) + half
    live = (half < HEAD // 2) & keep[:, None, None] & (at >= 0)
    tl.store(bytes_pointer(head, DATA)[:, None, None] + at, codes.to(tl.int8), mask=live)


INT8_STATIC_TILES = replace(INT8_TILES, store=_store, affine=False)
