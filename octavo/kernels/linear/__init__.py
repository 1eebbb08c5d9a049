"""Products with a dense weight."""

from torch import Tensor

from octavo.base.table import Table
from octavo.kernels.activation import silu_mul
from octavo.kernels.linear import reference

__all__ = ["FEW_ROWS", "LINEAR_IMPLS", "choose_parts", "gated_linear", "linear", "product_in_parts"]

FEW_ROWS = (16, 32, 64)
"""rows of x, padded up to one of these, that the GPU's own kernel is compiled for; more are the library's"""
_PARTED_ROWS, _PARTED_FEATURES, _PARTED_WIDTH = 320, 4096, 128


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


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None, impl: str) -> Tensor:
    """`silu_mul` of `linear`, to the same bits: `[T, F]` for a weight `[2 F, K]`, gate above up. Few rows on a GPU take
    one launch."""
    if impl == "triton":
        from octavo.kernels.linear import triton  # Triton loads only where it is used

        if triton.takes(x, weight):
            return triton.linear(x, weight, bias, gated=True)
    return silu_mul(linear(x, weight, bias, impl), impl)


def product_in_parts(x: Tensor, weight: Tensor, impl: str) -> Tensor:
    """As `linear` without a bias; or fp32 `[S, T, N]` whose sum over S is the product, for a caller that
    adds up anyway (`add_norm`), where that is faster: each part is the product of a share of the columns."""
    parts = choose_parts(len(x), *weight.shape) if impl == "triton" and x.is_cuda and x.element_size() == 2 else 1
    return reference.in_parts(x, weight, parts) if parts > 1 else linear(x, weight, None, impl)


def choose_parts(rows: int, features: int, width: int) -> int:
    """How many, of a product that the library computes: of a weight with few rows it makes about as many programs as
    there are multiprocessors, each with all columns to run along. Measured on an H200 (docs/kernels.md), and
    taken to hold for others."""
    few_programs = FEW_ROWS[-1] < rows <= _PARTED_ROWS and features <= _PARTED_FEATURES
    return 2 if few_programs and width % _PARTED_WIDTH == 0 else 1
