"""The fused elementwise kernels: the references against formulas written out here, Triton against the references.

Triton runs compiled on a GPU, elsewhere in its interpreter under TRITON_INTERPRET=1 (test_triton_interpreted.py).
"""

import importlib.util
import os

import pytest
import torch
from torch import Tensor

from octavo.kernels.activation import SILU_MUL_IMPLS, silu_mul
from octavo.kernels.norm import ADD_NORM_IMPLS, NORM_IMPLS, add_norm, norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
triton_runs = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or (DEVICE == "cpu" and not INTERPRETED),
    reason="no Triton, or neither a GPU nor its interpreter",
)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WIDTHS = [64, 128, 576, 4096, 5120, 8192, 16384]
FEATURES = [1, 100, 1536, 11008]
EPS = 1e-5


def numbers(*shape: int, dtype: torch.dtype, device: str = DEVICE, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) * spread).to(device, dtype)


def ordered(x: Tensor) -> Tensor:
    """Integers in the order of the floats: neighbours differ by 1."""
    integer = torch.int32 if x.dtype == torch.float32 else torch.int16
    bits = x.view(integer).long()
    return torch.where(bits < 0, -(bits & torch.iinfo(integer).max), bits)


def assert_near(got: Tensor, want: Tensor, most_ulps: int, rarely: float = 5e-3) -> None:
    """Nowhere more than `most_ulps` apart; in 16 bits nearly everywhere the same bits."""
    assert got.dtype == want.dtype and got.shape == want.shape
    assert got.isfinite().all()
    if INTERPRETED and got.dtype == torch.bfloat16:
        torch.testing.assert_close(got, want, rtol=3e-2, atol=1e-3)  # the interpreter's casts do not round to nearest
        return
    apart = (ordered(got) - ordered(want)).abs()
    assert apart.max() <= most_ulps, f"{apart.max()} ulps at {apart.argmax()}"
    if got.dtype != torch.float32:
        assert (apart > 0).double().mean() <= rarely


def written_out(x: Tensor, weight: Tensor) -> Tensor:
    """RMS norm in double precision, rounded where the contract says so."""
    wide = x.double()
    root = (wide.square().sum(-1, keepdim=True) / x.shape[-1] + EPS).sqrt()
    quotient = wide / root
    if x.dtype == torch.float32:
        return (quotient * weight.double()).to(x.dtype)
    return (quotient.to(x.dtype).double() * weight.double()).to(x.dtype)


def test_tables_agree():
    assert set(NORM_IMPLS) == set(ADD_NORM_IMPLS) == set(SILU_MUL_IMPLS) == {"triton", "cpu", "reference"}


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [64, 576, 4096])
def test_the_reference_is_the_formula(dtype: torch.dtype, width: int, impl: str):
    hidden, delta = (numbers(count, width, dtype=dtype, device="cpu")[:5] for count in (5, 6))
    weight = numbers(width, dtype=dtype, device="cpu")
    total, normed = add_norm(hidden, delta, weight, EPS, impl)
    assert torch.equal(total, (hidden.double() + delta.double()).to(dtype))
    parts = torch.stack((delta.float() - 3.0, torch.full_like(delta, 3.0, dtype=torch.float32)))
    rounded = parts.double().sum(0).float().to(dtype)
    assert torch.equal(add_norm(hidden, parts, weight, EPS, impl)[0], (hidden.double() + rounded.double()).to(dtype))
    assert_near(normed, written_out(total, weight), 4 if dtype == torch.float32 else 2)
    assert torch.equal(norm(total, weight, EPS, impl), normed)
    alone, normed = add_norm(hidden, None, weight, EPS, impl)
    assert torch.equal(alone, hidden)
    assert torch.equal(normed, norm(hidden, weight, EPS, impl))


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", FEATURES)
def test_silu_mul_is_the_formula(dtype: torch.dtype, features: int, impl: str):
    gate_up = numbers(3, 2 * features, dtype=dtype, device="cpu", spread=4.0)
    gate, up = gate_up[:, :features].double(), gate_up[:, features:].double()
    silu = (gate / (1 + (-gate).exp())).to(dtype)
    assert_near(silu_mul(gate_up, impl), (silu.double() * up).to(dtype), 8 if dtype == torch.float32 else 2, 1e-2)


@triton_runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("width", WIDTHS)
def test_add_norm(dtype: torch.dtype, width: int, parts: int):
    if parts > 1 and INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("the interpreter's casts do not round, and here two follow each other")
    rows = 3 if INTERPRETED else 70
    hidden, delta = (numbers(count, width, dtype=dtype)[:rows] for count in (rows, rows + 1))
    delta = delta if parts == 1 else numbers(parts, rows, width, dtype=torch.float32)
    weight = numbers(width, dtype=dtype)
    got, want = (add_norm(hidden, delta, weight, EPS, impl) for impl in ("triton", "reference"))
    if INTERPRETED and dtype == torch.bfloat16:
        torch.testing.assert_close(got[0], want[0], rtol=1e-2, atol=0)
    else:
        assert torch.equal(got[0], want[0]), "the residual is the same to the last bit"
    assert_near(got[1], want[1], 8 if dtype == torch.float32 else 2)
    ones = torch.ones_like(weight)  # before the weight, which can stretch it, rounding goes to a neighbour at most
    assert_near(
        norm(hidden, ones, EPS, "triton"), norm(hidden, ones, EPS, "reference"), 1 if got[0].itemsize == 2 else 8
    )


@triton_runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "heads", "width"), [(1, 4, 128), (7, 3, 128), (5, 2, 80), (2, 1, 64), (3, 5, 256)])
def test_norm_of_heads(dtype: torch.dtype, tokens: int, heads: int, width: int):
    """q and k as they are: slices of one fused output."""
    fused = numbers(tokens, (heads + 2) * width, dtype=dtype)
    weight = numbers(width, dtype=dtype)
    for side in (fused[:, : heads * width], fused[:, heads * width : (heads + 1) * width]):
        x = side.unflatten(1, (-1, width))
        assert_near(norm(x, weight, EPS, "triton"), norm(x, weight, EPS, "reference"), 8 if x.itemsize == 4 else 2)


@triton_runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_of_extremes(dtype: torch.dtype):
    """Rows of zeros, and rows whose squares a 16-bit number does not hold."""
    hidden = numbers(4, 576, dtype=dtype)
    hidden[0], hidden[1, 7], hidden[2] = 0, 30000.0, 3e-4
    weight = torch.ones(576, dtype=dtype, device=DEVICE)
    got, want = (norm(hidden, weight, EPS, impl) for impl in ("triton", "reference"))
    assert torch.equal(got[0], torch.zeros_like(got[0]))
    assert_near(got[1:], want[1:], 8 if dtype == torch.float32 else 1)


@triton_runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", FEATURES)
def test_silu_mul(dtype: torch.dtype, features: int):
    gate_up = numbers(3 if INTERPRETED else 70, 2 * features, dtype=dtype, spread=4.0)
    got, want = (silu_mul(gate_up, impl) for impl in ("triton", "reference"))
    assert_near(got, want, 32 if dtype == torch.float32 else 2, 1e-2)


@triton_runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_silu_mul_of_extremes(dtype: torch.dtype):
    gate = torch.tensor([-300.0, -100.0, -88.0, -20.0, -0.0, 0.0, 1e-7, 20.0, 100.0, 300.0], dtype=dtype, device=DEVICE)
    got, want = (silu_mul(torch.cat((gate, torch.ones_like(gate)))[None], impl) for impl in ("triton", "reference"))
    torch.testing.assert_close(got, want, rtol=1e-6 if dtype == torch.float32 else 0.01, atol=1e-35)


@pytest.mark.skipif(DEVICE == "cpu", reason="only a GPU compiles")
def test_nothing_compiles_twice():
    """Any number of rows, a single one too, is the same kernel."""
    from octavo.kernels.activation.triton import silu_mul_kernel
    from octavo.kernels.norm.triton import norm_kernel

    def run(tokens: int) -> int:
        fused = numbers(tokens, 6 * 128, dtype=torch.bfloat16)
        weight = numbers(768, dtype=torch.bfloat16)
        add_norm(fused, fused, weight, EPS, "triton")
        norm(fused, weight, EPS, "triton")
        norm(fused[:, :512].unflatten(1, (4, 128)), weight[:128], EPS, "triton")
        silu_mul(fused, "triton")
        kernels = (norm_kernel, silu_mul_kernel)
        return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())

    first = run(5)
    assert {run(tokens) for tokens in (1, 2, 3, 8, 16, 31, 4096)} == {first}
