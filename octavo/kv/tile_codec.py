"""The seam between a scheme and the Triton kernels: how a tile of rows is read and how rows are written.

A scheme names one of these, `tile_codec="package.module:NAME"`; the module is imported where Triton runs. The kernels
are handed the functions one by one, never this object: a compiler cache may serve a stale kernel otherwise.

A codec may bring the dimensions of a tile in any order it finds cheap: `key_dims` and `value_dims` tell which, and
the kernel brings q, or takes the output, in the same order.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from octavo.kv.scheme import Scheme

__all__ = ["TileCodec", "tiles_of"]


@dataclass(frozen=True)
class TileCodec:
    """Each function is a `triton.jit` function; WIDTH is HEAD (the head width) padded to a power of two.

    key_dims(place, HEAD, WIDTH)    the dimension at a place of a key tile, elementwise; below 0 or >= HEAD is padding
    load_keys(head, OFFSET, token, limit, HEAD, WIDTH, TILE, COMPUTE, PLAIN)      `[WIDTH, TILE]`; rows from `limit` on
                                                                                  may be anything
    value_dims(place, HEAD, WIDTH)
    load_values(head, OFFSET, token, limit, HEAD, WIDTH, TILE, COMPUTE, PLAIN)    `[TILE, WIDTH]`, zero from `limit` on
                                                                                  where the planes may hold NaN
    keys_of(codes, BYTES, TILE, PLAIN)                   the tile of `load_keys` from the bytes that it loads, as
                                                         `integer_tiles.key_bytes` brings them; rows have BYTES
    values_of(even, odd, BYTES, TILE, COMPUTE, PLAIN)    that of `load_values` likewise
    arrange_weights(weights, ROWS, TILE)     the columns of `[ROWS, TILE]` in the order of the rows of a value tile
    store(head, token, x, high, low, keep, HEAD, DATA, SCALE, MID, PLAIN)

    `head` points to the first byte of a head's block, `token` is the row within the page; OFFSET, DATA, SCALE and MID
    are where planes start in the block. `store` gets N vectors, fp32 `[N, 2, HALF]`: dimension h * HEAD / 2 + i lies at
    [h, i]; `head`, `token`, `keep`, and each vector's maximum and minimum, `high` and `low`, are `[N]`.
    PLAIN asks for portable arithmetic in place of inline assembly (the interpreter, other vendors).
    """

    key_dims: Any
    load_keys: Any
    value_dims: Any
    load_values: Any
    arrange_weights: Any
    store: Any
    key_compute: str
    """the dtype of a key tile, and of the parts that q is split into: int8, float16, bfloat16, float32"""
    value_compute: str
    affine: bool = False
    """planes 1 and 2 are a scale and a midpoint per row; the kernel folds them into scores and probabilities"""
    key_factor: float = 1.0
    """what a key tile must be multiplied with to be the codes"""
    one_warp: bool = False
    """whether the tiles lie as one warp's operands hold them: more warps a program would undo it"""
    sixteen_bits: bool = False
    """whether planes are rows of `key_compute`, which has 16 bits, as the tensor cores take them"""
    flipped: bool = False
    """whether `load_values` brings `[WIDTH, TILE]`: the tensor cores pad 8 query rows to 16, 8 columns to none"""
    load_rows: Any = None
    """as `load_values`, but `[TILE, WIDTH]` with rows and dimensions in their natural order, whatever that costs; None
    where `load_values` does so"""
    keys_of: Any = None
    """None where bytes are not loaded that way"""
    values_of: Any = None
    why_not: Callable[[tuple[int, int]], str | None] = lambda capability: None
    """CUDA compute capability -> why this codec cannot run there, or None"""


@cache
def _load(path: str) -> TileCodec:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def tiles_of(scheme: Scheme) -> TileCodec:
    assert scheme.tile_codec is not None, f"the scheme {scheme.name} has no tile codec"
    return _load(scheme.tile_codec)
