"""`int8`: one byte a number, scale and midpoint per token and head."""

from typing import TYPE_CHECKING

from octavo.kv.scheme import Plane, Scheme, Tolerance
from octavo.kv.schemes.integer import FP16_MAX, dequantize, quantize

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["INT8"]


def _encode(vectors: "Tensor") -> tuple["Tensor", ...]:
    import torch

    codes, scale, mid = quantize(vectors, bits=8)
    return codes.to(torch.int8), scale, mid


def _decode(planes: tuple["Tensor", ...]) -> "Tensor":
    return dequantize(*planes)


INT8 = Scheme(
    "int8",
    (
        Plane("codes", "int8", lambda width: width),
        Plane("scale", "float16", lambda _: 1),
        Plane("mid", "float16", lambda _: 1),
    ),
    _encode,
    _decode,
    # half a step, plus what the fp16 rounding of midpoint and scale takes from the outermost codes
    Tolerance(of_range=0.56 / 255, of_peak=2**-17, floor=1e-5, holds_to=FP16_MAX),
    rotates=True,
    aliases=("8", "int8_per_token_head", "q8_0"),
    tile_codec="octavo.kv.schemes.int8_tiles:INT8_TILES",
    row_codec="octavo.kv.schemes.int8_rows:Int8Rows",
    summary="per token and head, rotated; the default",
)
