"""Schemes that keep each number as a float of some width, with no metadata."""

from typing import TYPE_CHECKING

from octavo.kv.scheme import Plane, Scheme, Tolerance

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BF16", "FP8", "FP16", "FP32"]


def _width(head_dim: int) -> int:
    return head_dim


def _encode_fp32(vectors: "Tensor") -> tuple["Tensor", ...]:
    return (vectors.float(),)


def _encode_bf16(vectors: "Tensor") -> tuple["Tensor", ...]:
    import torch

    peak = torch.finfo(torch.bfloat16).max  # rounding up past it would make an infinity
    return (vectors.clamp(-peak, peak).to(torch.bfloat16),)


def _encode_fp16(vectors: "Tensor") -> tuple["Tensor", ...]:
    import torch

    peak = torch.finfo(torch.float16).max
    return (vectors.clamp(-peak, peak).to(torch.float16),)


def _decode_float(planes: tuple["Tensor", ...]) -> "Tensor":
    return planes[0].float()


def _encode_fp8(vectors: "Tensor") -> tuple["Tensor", ...]:
    import torch

    peak = torch.finfo(torch.float8_e4m3fn).max  # 448; the cast itself would give NaN beyond it
    return (vectors.clamp(-peak, peak).to(torch.float8_e4m3fn).view(torch.uint8),)


def _decode_fp8(planes: tuple["Tensor", ...]) -> "Tensor":
    import torch

    return planes[0].view(torch.float8_e4m3fn).float()


_ROWS = "octavo.kv.schemes.floats_rows:"
_TILES = "octavo.kv.schemes.floats_tiles:"

FP32 = Scheme(
    "fp32", (Plane("data", "float32", _width),), _encode_fp32, _decode_float, Tolerance(), exact=True,
    aliases=("float32",), tile_codec=_TILES + "FP32_TILES", row_codec=_ROWS + "Fp32Rows",
    summary="exact; for tests and as the yardstick",
)  # fmt: skip
BF16 = Scheme(
    "bf16", (Plane("data", "bfloat16", _width),), _encode_bf16, _decode_float,
    Tolerance(of_peak=2**-8, floor=2**-134, holds_to=3.3895313892515355e38), aliases=("bfloat16",),
    tile_codec=_TILES + "BF16_TILES", row_codec=_ROWS + "Bf16Rows",
    summary="what everyone serves; the baseline",
)  # fmt: skip
FP16 = Scheme(
    "fp16", (Plane("data", "float16", _width),), _encode_fp16, _decode_float,
    Tolerance(of_peak=2**-11, floor=2**-25, holds_to=65504.0), aliases=("float16", "half"),
    tile_codec=_TILES + "FP16_TILES", row_codec=_ROWS + "Fp16Rows",
    summary="11-bit mantissa; saturates at 65504",
)  # fmt: skip
FP8 = Scheme(
    "fp8", (Plane("data", "uint8", _width),), _encode_fp8, _decode_fp8,
    Tolerance(of_peak=2**-4, floor=2**-10, holds_to=448.0), aliases=("fp8_e4m3", "fp8_e4m3fn"), peak=448.0,
    tile_codec=_TILES + "FP8_TILES", row_codec=_ROWS + "Fp8Rows",
    summary="e4m3, scale 1 unless calibrated; saturates at 448",
)  # fmt: skip
