"""Midpoint integer quantization of one vector, shared by the integer schemes.

    mid   = (max + min) / 2                          stored as fp16
    scale = max(max - mid, mid - min) / (levels / 2) stored as fp16, mid and scale as stored
    q     = clamp(rint((x - mid) / scale))           signed, round half to even
    x ~ q * scale + mid

The scale is taken from the *stored* midpoint and the codes from the *stored* scale, so the rounding of the
metadata is compensated by the codes instead of added to them, and values beyond fp16's range degrade gracefully
(the midpoint saturates, the scale widens) instead of becoming infinite. A constant vector gets a scale of zero,
or one so small that it corrects the rounding of the midpoint.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FP16_MAX", "dequantize", "quantize"]

FP16_MAX = 65504.0


def quantize(vectors: "Tensor", bits: int) -> tuple["Tensor", "Tensor", "Tensor"]:
    """fp32 `[..., D]` -> codes (fp32 whole numbers) `[..., D]`, scale and mid, both fp16 `[..., 1]`."""
    import torch

    vectors = vectors.float()
    high, low = vectors.amax(-1, keepdim=True), vectors.amin(-1, keepdim=True)
    mid = (high * 0.5 + low * 0.5).clamp(-FP16_MAX, FP16_MAX).half()
    half_range = torch.maximum(high - mid.float(), mid.float() - low)
    scale = (half_range * (2.0 / (2**bits - 1))).clamp(max=FP16_MAX).half()
    step = scale.float()
    inverse = torch.where(step > 0, 1.0 / step.clamp(min=2**-24), torch.zeros_like(step))
    codes = torch.round((vectors - mid.float()) * inverse)
    return codes.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1), scale, mid


def dequantize(codes: "Tensor", scale: "Tensor", mid: "Tensor") -> "Tensor":
    """Codes `[..., D]`, scale and mid `[..., 1]` -> fp32 `[..., D]`."""
    return codes.float() * scale.float() + mid.float()
