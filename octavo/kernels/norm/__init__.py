"""RMS norm, with the residual addition before it: what stands between the products of a decoder."""

from torch import Tensor

from octavo.base.table import Table
from octavo.kernels.norm import reference

__all__ = ["ADD_NORM_IMPLS", "NORM_IMPLS", "add_norm", "norm"]


def _triton_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    from octavo.kernels.norm import triton  # Triton loads only where it is used

    return triton.norm(hidden, weight, eps)


def _triton_add_norm(hidden: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    from octavo.kernels.norm import triton

    return triton.add_norm(hidden, delta, weight, eps)


NORM_IMPLS = Table("norm impl", {"triton": _triton_norm, "cpu": reference.rms_norm, "reference": reference.rms_norm})
ADD_NORM_IMPLS = Table(
    "norm impl", {"triton": _triton_add_norm, "cpu": reference.add_norm, "reference": reference.add_norm}
)


def norm(hidden: Tensor, weight: Tensor, eps: float, impl: str) -> Tensor:
    """`hidden / rms(hidden) * weight` over the last dimension (Zhang and Sennrich, 2019).

    hidden `[T, width]` or `[T, N, width]`, weight `[width]`, both of one float dtype, which the result has too. The
    mean of squares and the division are fp32; the quotient is rounded to the dtype before it is multiplied. The sum of
    squares may be taken in any order: implementations differ by what that moves, an ulp or two of fp32. In 16 bits a
    quotient near the middle between two numbers then goes to its neighbour now and then, and the product with the
    weight, by at most two.
    """
    return NORM_IMPLS[impl](hidden, weight, eps)


def add_norm(hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float, impl: str) -> tuple[Tensor, Tensor]:
    """`(hidden + delta, norm(hidden + delta))` for hidden and delta `[T, width]` of one dtype.

    The sum is rounded to the dtype, to the same bits in every implementation, and the norm is taken of what was
    rounded. Without a `delta` nothing is added. A delta may come in parts, fp32 `[S, T, width]` (`product_in_parts`):
    their sum in fp32, rounded to the dtype.
    """
    if delta is None:
        return hidden, norm(hidden, weight, eps, impl)
    return ADD_NORM_IMPLS[impl](hidden, delta, weight, eps)
