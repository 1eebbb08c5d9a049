"""Midpoint integer quantization of one vector in Numba: `integer.quantize`, operation for operation in fp32."""

import numpy as np
from numba import njit

from octavo.kv.row_codec import from_half, to_half

__all__ = ["measure", "put_half"]


@njit(error_model="numpy")
def measure(vector, dim, levels):
    """fp32 `[dim]` -> the bits of scale and midpoint, the midpoint, and 1 / scale (0 where the scale is 0)."""
    high = low = vector[0]
    for i in range(1, dim):
        high = max(high, vector[i])
        low = min(low, vector[i])
    half = np.float32(0.5)
    mid_bits = to_half(high * half + low * half)
    mid = from_half(mid_bits)
    half_range = max(high - mid, mid - low)
    scale_bits = to_half(half_range * np.float32(2.0 / (levels - 1)))
    step = from_half(scale_bits)
    inverse = np.float32(1.0) / step if step > 0 else np.float32(0.0)
    return scale_bits, mid_bits, mid, inverse


@njit(inline="always")
def put_half(block, offset, bits):
    """Write the 16 bits of an fp16 at a byte offset that is even."""
    block[offset : offset + 2].view(np.uint16)[0] = bits
