"""What stands between the products of an MLP: SwiGLU's gate."""

from torch import Tensor

from octavo.base.table import Table
from octavo.kernels.activation import reference

__all__ = ["SILU_MUL_IMPLS", "silu_mul"]


def _triton(gate_up: Tensor) -> Tensor:
    from octavo.kernels.activation import triton  # Triton loads only where it is used

    return triton.silu_mul(gate_up)


SILU_MUL_IMPLS = Table(
    "activation impl", {"triton": _triton, "cpu": reference.silu_mul, "reference": reference.silu_mul}
)


def silu_mul(gate_up: Tensor, impl: str) -> Tensor:
    """`silu(gate) * up` for `[T, 2 F]`, gate in the first F columns -> `[T, F]` (Shazeer, 2020).

    silu is computed in fp32 and rounded to the dtype before the product. Implementations differ by the last bits of an
    exponential: in 16 bits silu goes to its neighbour now and then, and the product by at most two.
    """
    return SILU_MUL_IMPLS[impl](gate_up)
