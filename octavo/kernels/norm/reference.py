"""RMS norm, as defined: torch operations on any device."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["add_norm", "rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / rms(x) * weight` over the last dimension; the mean of squares in fp32."""
    if x.dtype == torch.float32:
        return functional.rms_norm(x, weight.shape, weight, eps)
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return scaled.to(x.dtype) * weight


def add_norm(hidden: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if delta.dim() == 3:
        delta = delta.sum(0).to(hidden.dtype)
    hidden = hidden + delta
    return hidden, rms_norm(hidden, weight, eps)
