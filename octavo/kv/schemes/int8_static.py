"""`int8-static`: one byte a number and nothing else. The scales were measured beforehand, on text, one for each layer
and KV head; they are folded into what is done to K, Q, V and the output (octavo/kv/fit.py), so that what is stored here
is already in units of its step. Values beyond 127 steps are clipped, and counted."""

from typing import TYPE_CHECKING

from octavo.kv.scheme import Plane, Scheme, Tolerance

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["INT8_STATIC"]


def _encode(vectors: "Tensor") -> tuple["Tensor", ...]:
    import torch

    return (torch.round(vectors.float()).clamp(-127, 127).to(torch.int8),)  # half to even; symmetric


def _decode(planes: tuple["Tensor", ...]) -> "Tensor":
    return planes[0].float()


INT8_STATIC = Scheme(
    "int8-static",
    (Plane("codes", "int8", lambda width: width),),
    _encode,
    _decode,
    Tolerance(floor=0.5, holds_to=127.0),
    rotates=True,
    peak=127.0,
    needs_scale=True,
    aliases=("int8_static", "int8_per_head", "int8_per_tensor"),
    tile_codec="octavo.kv.schemes.int8_static_tiles:INT8_STATIC_TILES",
    row_codec="octavo.kv.schemes.int8_static_rows:Int8StaticRows",
    summary="calibrated scale per layer and head, rotated",
)
