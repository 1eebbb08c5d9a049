"""Midpoint integer quantization of one vector, shared by the integer schemes. With b bits and h = 2^(b-1):

    step  = (max - min) / (2h - 1)
    mid   = (max + min + step) / 2                     stored as fp16
    scale = max((max - mid) / (h - 1), (mid - min) / h)   stored as fp16, from mid as stored
    q     = clamp(rint((x - mid) / scale), -h, h - 1)  signed, round half to even
    x ~ q * scale + mid

The half step in the midpoint puts both extremes of the vector on the grid -h..h-1 (min at -h, max at h - 1). Without it
they lie half a step beside it, and the largest element of every vector, which matters most, has the largest error:
SmolLM2's KL on 4 x 1024 tokens of WikiText-2 was 1.63e-4 without and 1.46e-4 with it at int8, 0.049 and 0.044 at int4.

The scale is taken from the *stored* midpoint and the codes from the *stored* scale, so the rounding of the metadata is
compensated by the codes instead of added to them, and values beyond fp16's range degrade gracefully (the midpoint
saturates, the scale widens) instead of becoming infinite. A constant vector gets a scale of zero, or one so small that
it corrects the rounding of the midpoint.
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
    levels = 2 ** (bits - 1)
    high, low = vectors.amax(-1, keepdim=True), vectors.amin(-1, keepdim=True)
    half_step = (high * 0.5 - low * 0.5) * (1.0 / (2 * levels - 1))
    mid = (high * 0.5 + low * 0.5 + half_step).clamp(-FP16_MAX, FP16_MAX).half()
    above, below = high - mid.float(), mid.float() - low
    scale = torch.maximum(above * (1.0 / (levels - 1)), below * (1.0 / levels)).clamp(max=FP16_MAX).half()
    step = scale.float()
    inverse = torch.where(step > 0, 1.0 / step.clamp(min=2**-24), torch.zeros_like(step))
    codes = torch.round((vectors - mid.float()) * inverse)
    return codes.clamp(-levels, levels - 1), scale, mid


def dequantize(codes: "Tensor", scale: "Tensor", mid: "Tensor") -> "Tensor":
    """Codes `[..., D]`, scale and mid `[..., 1]` -> fp32 `[..., D]`."""
    return codes.float() * scale.float() + mid.float()
