"""Products with a dense weight."""

from torch import Tensor

from octavo.base.table import Table
from octavo.kernels.linear import reference

__all__ = ["FEW_ROWS", "LINEAR_IMPLS", "linear"]

FEW_ROWS = (16, 32, 64)
"""rows of x, padded up to one of these, that the GPU's own kernel is compiled for; more are the library's"""


def _triton(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    from octavo.kernels.linear import triton  # Triton loads only where it is used

    return triton.linear(x, weight, bias) if triton.takes(x, weight) else reference.linear(x, weight, bias)


LINEAR_IMPLS = Table("linear impl", {"triton": _triton, "cpu": reference.linear, "reference": reference.linear})


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, impl: str) -> Tensor:
    """`x W^T + b` for x `[T, K]`, weight `[N, K]` and bias `[N]` of one float dtype -> `[T, N]` of that dtype.

    Sums are fp32, in any order, and rounded once: implementations differ by that order. A row of the result may depend
    on how many others there are; a model that must not sees to it that there are always as many.
    """
    return LINEAR_IMPLS[impl](x, weight, bias)
