"""`int4`: two numbers a byte, scale and midpoint per token and head.

Byte j holds dimension j in its low nibble and j + D/2 in its high one: two contiguous halves, no interleave.
"""

from typing import TYPE_CHECKING

from octavo.kv.scheme import Plane, Scheme, Tolerance
from octavo.kv.schemes.integer import FP16_MAX, dequantize, quantize

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["INT4"]


def _encode(vectors: "Tensor") -> tuple["Tensor", ...]:
    import torch

    codes, scale, mid = quantize(vectors, bits=4)
    low, high = (codes.to(torch.int16) & 0xF).chunk(2, dim=-1)
    return (low | (high << 4)).to(torch.uint8), scale, mid


def _decode(planes: tuple["Tensor", ...]) -> "Tensor":
    import torch

    packed, scale, mid = planes
    nibbles = torch.cat((packed & 0xF, packed >> 4), dim=-1).to(torch.int8)
    codes = torch.where(nibbles > 7, nibbles - 16, nibbles)  # two's complement of four bits
    return dequantize(codes, scale, mid)


INT4 = Scheme(
    "int4",
    (
        Plane("codes", "uint8", lambda width: width // 2),
        Plane("scale", "float16", lambda _: 1),
        Plane("mid", "float16", lambda _: 1),
    ),
    _encode,
    _decode,
    Tolerance(of_range=0.51 / 15, of_peak=2**-14, floor=1e-5, holds_to=FP16_MAX),
    rotates=True,
    aliases=("4", "int4_per_token_head", "q4_0"),
    tile_codec="octavo.kv.schemes.int4_tiles:INT4_TILES",
    row_codec="octavo.kv.schemes.int4_rows:Int4Rows",
    summary="two numbers a byte, per token and head, rotated",
)
