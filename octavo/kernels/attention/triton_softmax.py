"""The softmax that runs along a context, tile by tile, as all paged kernels do it (written in Triton, called from Gluon
as well, which keeps the layouts of its arguments)."""

import triton
import triton.language as tl

__all__ = ["softmax_step"]


@triton.jit
def _about_log2(x):
    """log2 of positive x within 0.09: the bits of a float are its logarithm, but for the bend within an octave."""
    return x.to(tl.int32, bitcast=True).to(tl.float32) * 1.1920928955078125e-07 - 127.0


@triton.jit
def softmax_step(score, scale, mid, peak, mass, offset, AFFINE: tl.constexpr):
    """Take scores `[ROWS, TILE]` in: the weights that go to V, by what the older ones shrink, and peak, mass and offset
    `[ROWS]` anew. V's scale and midpoint, which broadcast to the scores, are read if AFFINE."""
    if AFFINE:
        top = tl.max(score + _about_log2(tl.maximum(scale, 2.9802322387695312e-08)), 1)
    else:
        top = tl.max(score, 1)
    new_peak = tl.maximum(peak, top)
    alpha = tl.exp2(peak - new_peak)
    weights = tl.exp2(score - new_peak[:, None])
    mass = mass * alpha + tl.sum(weights, 1)
    if AFFINE:
        offset = offset * alpha + tl.sum(weights * mid, 1)
        weights = weights * scale
    return weights, alpha, new_peak, mass, offset
