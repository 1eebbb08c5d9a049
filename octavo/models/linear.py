"""A dense linear layer that lays its weight out once for the device that runs it."""

import torch
from torch import Tensor
from torch.nn import functional

from octavo.kernels.activation import silu_mul
from octavo.kernels.linear import gated_linear, linear, product_in_parts

__all__ = ["Linear", "missing_rows", "packs", "pad_rows"]

_ROW_MULTIPLE = 64
_INVARIANT_ROWS = 32
"""rows of every product in a model that is batch invariant; a decode step pays for as many"""


class Linear:
    """`y = x W^T + b` over `[T, in]`. On a CPU, bf16 weights are reordered for oneDNN once, at load: on small layers
    that halves the time of a decode step (576 x 3072, one row: 35 us against 73 us on two Zen 5 cores)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, out_features: int | None = None):
        """`out_features`: how many rows of a weight from `pad_rows` are real; y has as many columns."""
        self.out_features, self.in_features = out_features or len(weight), weight.shape[1]
        self.bias = bias
        self.invariant = False
        self._weight = weight
        self._packed = _pack(weight)
        if self._packed is not None:
            self._weight = self._packed

    def __call__(self, x: Tensor, impl: str = "reference") -> Tensor:
        """With `invariant`, in products of one shape: libraries choose how to add up by the number of rows, and a row's
        result would depend on how many others there are."""
        if not self.invariant:
            return self._product(x, impl)
        count = len(x)
        padded = functional.pad(x, (0, 0, 0, -count % _INVARIANT_ROWS))
        return torch.cat([self._product(part, "reference") for part in padded.split(_INVARIANT_ROWS)])[:count]

    def gated(self, x: Tensor, impl: str) -> Tensor:
        """`silu(gate) * up` for `[gate, up] = y`: `[T, out / 2]`."""
        if self.invariant or self._packed is not None or self.out_features < len(self._weight):
            return silu_mul(self(x, impl), impl)
        return gated_linear(x, self._weight, self.bias, impl)

    def in_parts(self, x: Tensor, impl: str) -> Tensor:
        """As a call; or fp32 `[S, T, out]`, of which `add_norm` takes the sum."""
        plain = self.bias is None and self._packed is None and self.out_features == len(self._weight)
        return product_in_parts(x, self._weight, impl) if plain and not self.invariant else self(x, impl)

    def _product(self, x: Tensor, impl: str) -> Tensor:
        if self._packed is not None:
            y = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        else:
            y = linear(x, self._weight, self.bias, impl)
        return y if y.shape[1] == self.out_features else y[:, : self.out_features]


def pad_rows(weight: Tensor) -> Tensor:
    """The weight `[out, in]` with rows of zeros up to a multiple of 64 on a GPU; as it is elsewhere. cuBLAS takes its
    fast kernels only where the rows of the product begin at multiples of 16 bytes, and vocabularies are of any size."""
    missing = missing_rows(len(weight), weight.device.type)
    return functional.pad(weight, (0, 0, 0, missing)) if missing else weight


def missing_rows(count: int, device: str) -> int:
    """How many rows `pad_rows` adds to `count`; `device`: cpu, cuda or cuda:N."""
    return -count % _ROW_MULTIPLE if device.startswith("cuda") else 0


def _pack(weight: Tensor) -> Tensor | None:
    """The weight in oneDNN's own order, or None where that does not apply. oneDNN chooses the order."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, None) if packs(weight.dtype, weight.device.type) else None


def packs(dtype: torch.dtype, device: str) -> bool:
    """Whether weights of this kind are reordered at load. The original is not kept, but where it serves elsewhere too
    (a tied embedding) there are two then."""
    if device != "cpu" or dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    return hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
