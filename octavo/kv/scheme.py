"""What a scheme is: how one vector (the K or V of one token, one KV head, one layer) is stored.

A scheme knows its planes, its reference encode and decode, and nothing about pages, devices or models.
Importing a scheme needs no torch: the codecs import it when they run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ITEM_BYTES", "Plane", "Scheme", "Tolerance"]

ITEM_BYTES = {"uint8": 1, "int8": 1, "float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Plane:
    """One kind of number that is stored for every vector: the codes, the scale, the midpoint."""

    name: str
    dtype: str
    items: Callable[[int], int]
    """head_dim -> how many items of `dtype` one vector takes in this plane"""

    def row_bytes(self, head_dim: int) -> int:
        return self.items(head_dim) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Tolerance:
    """Bound on |decode(encode(x)) - x| per element: `of_range * (max x - min x) + of_peak * max |x| + floor`.

    It holds while max |x| <= `holds_to`; beyond that values saturate or coarsen, and stay finite.
    """

    of_range: float = 0.0
    of_peak: float = 0.0
    floor: float = 0.0
    holds_to: float = float("inf")


@dataclass(frozen=True)
class Scheme:
    """How one vector is stored. `encode` takes fp32 `[..., D]` and returns one tensor `[..., items]` per plane;
    `decode` is its inverse, back to fp32 `[..., D]`. They define the truth on every device.

    `row_codec` names the Numba codec (`"package.module:Class"`, see row_codec.py), `tile_codec` the one for Triton; a
    scheme without one is served by the reference kernels, and that is said at start.
    """

    name: str
    planes: tuple[Plane, ...]
    encode: Callable[["Tensor"], tuple["Tensor", ...]]
    decode: Callable[[tuple["Tensor", ...]], "Tensor"]
    tolerance: Tolerance
    rotates: bool = False
    """whether the Hadamard rotation is on by default"""
    peak: float | None = None
    """the largest number it stores, where that is part of a scale's meaning"""
    needs_scale: bool = False
    """whether it stores nothing sensible without a static scale from a calibration"""
    exact: bool = False
    """whether decode(encode(x)) is x to the last bit in fp32"""
    aliases: tuple[str, ...] = ()
    row_codec: str | None = None
    tile_codec: str | None = None
    summary: str = ""

    def vector_bytes(self, head_dim: int) -> int:
        """Bytes of one stored vector, metadata included."""
        return sum(plane.row_bytes(head_dim) for plane in self.planes)
