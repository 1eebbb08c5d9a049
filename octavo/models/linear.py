"""A dense linear layer that lays its weight out once for the device that runs it."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Linear"]


class Linear:
    """`y = x W^T + b` over `[T, in]`. On a CPU, bf16 weights are reordered for oneDNN once, at load: on small layers
    that halves the time of a decode step (576 x 3072, one row: 35 us against 73 us on two Zen 5 cores)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self._weight = weight
        self._packed = _pack(weight)
        if self._packed is not None:
            self._weight = self._packed

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return torch.nn.functional.linear(x, self._weight, self.bias)


def _pack(weight: Tensor) -> Tensor | None:
    """The weight in oneDNN's own order, or None where that does not apply. oneDNN chooses the order."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return None
    reorder: Callable | None = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
    if reorder is None or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return reorder(weight, None)
