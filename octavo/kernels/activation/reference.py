"""SwiGLU's gate, as defined: torch operations on any device."""

from torch import Tensor
from torch.nn import functional

__all__ = ["silu_mul"]


def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=1)
    return functional.silu(gate) * up
