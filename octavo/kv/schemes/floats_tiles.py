"""The tile codecs of the float schemes for Triton: plain tiles in natural order."""

import triton
import triton.language as tl

from octavo.kv.tile_codec import TileCodec

__all__ = ["BF16_TILES", "FP8_TILES", "FP16_TILES", "FP32_TILES"]


@triton.jit
def _dims(place, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    return place


@triton.jit
def _as_they_are(weights, ROWS: tl.constexpr, TILE: tl.constexpr):
    return weights


@triton.jit
def _keys(
    head, ITEM: tl.constexpr, OFFSET: tl.constexpr, token, limit, HEAD: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    dim = tl.arange(0, WIDTH)[:, None]
    row = tl.arange(0, TILE)[None, :]
    pointer = (head + OFFSET).to(tl.pointer_type(ITEM)) + (token + row) * HEAD + dim
    return tl.load(pointer, mask=(dim < HEAD) & (row < limit), other=0.0).to(COMPUTE)


@triton.jit
def _values(
    head, ITEM: tl.constexpr, OFFSET: tl.constexpr, token, limit, HEAD: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    dim = tl.arange(0, WIDTH)[None, :]
    row = tl.arange(0, TILE)[:, None]
    pointer = (head + OFFSET).to(tl.pointer_type(ITEM)) + (token + row) * HEAD + dim
    return tl.load(pointer, mask=(dim < HEAD) & (row < limit), other=0.0).to(COMPUTE)


@triton.jit
def _rows(
    head, ITEM: tl.constexpr, PEAK: tl.constexpr, token, x, keep, HEAD: tl.constexpr, DATA: tl.constexpr
):  # fmt: skip
    half = tl.arange(0, x.shape[2])[None, None, :]
    at = token[:, None, None] * HEAD + tl.arange(0, 2)[None, :, None] * (HEAD // 2) + half
    live = (half < HEAD // 2) & keep[:, None, None] & (at >= 0)
    if PEAK > 0:
        # a rounding past the peak would make an infinity; NaN stays what it is
        x = tl.where(x > PEAK, PEAK, tl.where(x < -PEAK, -PEAK, x))
    tl.store((head + DATA).to(tl.pointer_type(ITEM))[:, None, None] + at, x.to(ITEM), mask=live)


@triton.jit
def _bf16_keys(
    head, OFFSET: tl.constexpr, token, limit, HEAD: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    COMPUTE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    return _keys(head, tl.bfloat16, OFFSET, token, limit, HEAD, WIDTH, TILE, COMPUTE)


@triton.jit
def _bf16_values(
    head, OFFSET: tl.constexpr, token, limit, HEAD: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    COMPUTE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    return _values(head, tl.bfloat16, OFFSET, token, limit, HEAD, WIDTH, TILE, COMPUTE)


@triton.jit
def _bf16_store(
    head, token, x, high, low, keep, HEAD: tl.constexpr, DATA: tl.constexpr, SCALE: tl.constexpr,
    MID: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    _rows(head, tl.bfloat16, 3.3895313892515355e38, token, x, keep, HEAD, DATA)


@triton.jit
def _fp16_keys(
    head, OFFSET: tl.constexpr, token, limit, HEAD: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    COMPUTE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    return _keys(head, tl.float16, OFFSET, token, limit, HEAD, WIDTH, TILE, COMPUTE)


@triton.jit
def _fp16_values(
    head, OFFSET: tl.constexpr, token, limit, HEAD: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    COMPUTE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    return _values(head, tl.float16, OFFSET, token, limit, HEAD, WIDTH, TILE, COMPUTE)


@triton.jit
def _fp16_store(
    head, token, x, high, low, keep, HEAD: tl.constexpr, DATA: tl.constexpr, SCALE: tl.constexpr,
    MID: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    _rows(head, tl.float16, 65504.0, token, x, keep, HEAD, DATA)


@triton.jit
def _fp8_keys(
    head, OFFSET: tl.constexpr, token, limit, HEAD: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    COMPUTE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    return _keys(head, tl.float8e4nv, OFFSET, token, limit, HEAD, WIDTH, TILE, COMPUTE)


@triton.jit
def _fp8_values(
    head, OFFSET: tl.constexpr, token, limit, HEAD: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    COMPUTE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    return _values(head, tl.float8e4nv, OFFSET, token, limit, HEAD, WIDTH, TILE, COMPUTE)


@triton.jit
def _fp8_store(
    head, token, x, high, low, keep, HEAD: tl.constexpr, DATA: tl.constexpr, SCALE: tl.constexpr,
    MID: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    _rows(head, tl.float8e4nv, 448.0, token, x, keep, HEAD, DATA)


@triton.jit
def _fp32_keys(
    head, OFFSET: tl.constexpr, token, limit, HEAD: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    COMPUTE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    return _keys(head, tl.float32, OFFSET, token, limit, HEAD, WIDTH, TILE, COMPUTE)


@triton.jit
def _fp32_values(
    head, OFFSET: tl.constexpr, token, limit, HEAD: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    COMPUTE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    return _values(head, tl.float32, OFFSET, token, limit, HEAD, WIDTH, TILE, COMPUTE)


@triton.jit
def _fp32_store(
    head, token, x, high, low, keep, HEAD: tl.constexpr, DATA: tl.constexpr, SCALE: tl.constexpr,
    MID: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    _rows(head, tl.float32, 0.0, token, x, keep, HEAD, DATA)


def _why_not_fp8(capability: tuple[int, int]) -> str | None:
    return None if capability >= (8, 9) else "fp8 pages need compute capability 8.9 (Ada, Hopper) or later"


BF16_TILES = TileCodec(
    _dims, _bf16_keys, _dims, _bf16_values, _as_they_are, _bf16_store, "bfloat16", "bfloat16", sixteen_bits=True
)
FP16_TILES = TileCodec(
    _dims, _fp16_keys, _dims, _fp16_values, _as_they_are, _fp16_store, "float16", "float16", sixteen_bits=True
)
FP8_TILES = TileCodec(
    _dims, _fp8_keys, _dims, _fp8_values, _as_they_are, _fp8_store, "float16", "float16", why_not=_why_not_fp8
)
FP32_TILES = TileCodec(_dims, _fp32_keys, _dims, _fp32_values, _as_they_are, _fp32_store, "float32", "float32")
