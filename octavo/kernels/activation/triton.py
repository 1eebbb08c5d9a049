"""SwiGLU's gate in Triton: one launch, every number read once."""

import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.ahead import follows, launch
from octavo.kernels.triton_early import after_previous

__all__ = ["gate_tile", "silu_mul", "silu_mul_kernel"]


@triton.jit
def gate_tile(gate, up):
    """`silu(gate) * up` of tiles of one shape and dtype, silu rounded to that dtype before the product."""
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    return (silu.to(tl.float32) * up.to(tl.float32)).to(gate.dtype)


@triton.jit
def silu_mul_kernel(gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """Grid (tokens, blocks of a row). gate_up `[T, 2 WIDTH]`, out `[T, WIDTH]`."""
    after_previous(EARLY)
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = at < WIDTH
    gate = tl.load(gate_up + token * (2 * WIDTH) + at, mask=live, other=0.0)
    up = tl.load(gate_up + token * (2 * WIDTH) + WIDTH + at, mask=live, other=0.0)
    tl.store(out + token * WIDTH + at, gate_tile(gate, up), mask=live)


def silu_mul(gate_up: Tensor) -> Tensor:
    gate_up = gate_up.contiguous()
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(tokens, width)
    block = min(1024, triton.next_power_of_2(width))
    launch(
        silu_mul_kernel, (tokens, triton.cdiv(width, block)), gate_up, out, WIDTH=width, BLOCK=block, num_warps=4,
        enable_fp_fusion=False, **follows(out.device),
    )  # fmt: skip
    return out
