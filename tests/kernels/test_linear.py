"""Products of few rows: Triton against double precision, whatever the cut; and what is left to the library."""

import importlib.util
import os

import pytest
import torch
from torch import Tensor

from octavo.kernels.activation import silu_mul
from octavo.kernels.linear import FEW_ROWS, LINEAR_IMPLS, choose_parts, gated_linear, linear, product_in_parts

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
triton_runs = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or (DEVICE == "cpu" and not INTERPRETED),
    reason="no Triton, or neither a GPU nor its interpreter",
)
DTYPES = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def assert_product(got: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    want = x.double() @ weight.double().T + (0.0 if bias is None else bias.double())
    assert got.dtype == x.dtype and got.shape == want.shape
    assert ((got.double() - want).norm() / want.norm()).item() < 4 * torch.finfo(x.dtype).eps


def test_the_table():
    assert set(LINEAR_IMPLS) == {"triton", "cpu", "reference"}


@triton_runs
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("features", "width"), [(64, 64), (100, 192), (192, 576), (448, 1536)])
@pytest.mark.parametrize("rows", [1, 8, 16, 17, 33, 64])
def test_few_rows(rows: int, features: int, width: int, dtype: torch.dtype, biased: bool):
    x, weight = numbers(rows, width, dtype=dtype), numbers(features, width, dtype=dtype)
    bias = numbers(features, dtype=dtype) if biased else None
    assert_product(linear(x, weight, bias, "triton"), x, weight, bias)


@triton_runs
@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize(("block_n", "block_k"), [(16, 64), (32, 128), (64, 256)])
def test_any_cut(block_n: int, block_k: int, splits: int):
    from octavo.kernels.linear.triton import Tiling
    from octavo.kernels.linear.triton import linear as cut

    weight, tiling = numbers(200, 832, dtype=torch.float16), Tiling(block_n, block_k, splits, 2, 3)
    for x in (numbers(9, 832, dtype=torch.float16), numbers(100, 832, dtype=torch.float16)):
        for _ in range(2):  # the counters of the splits are left as they were found
            assert_product(cut(x, weight, None, tiling), x, weight, None)


@triton_runs
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("features", "width"), [(64, 64), (100, 192), (192, 576), (11008, 64)])
@pytest.mark.parametrize("rows", [1, 8, 17, 64])
def test_gates_in_one_launch(rows: int, features: int, width: int, dtype: torch.dtype, biased: bool):
    """What is gated is what two launches compute, to the bit."""
    from octavo.kernels.linear.triton import takes

    x, weight = numbers(rows, width, dtype=dtype), numbers(features, width, dtype=dtype)
    bias = numbers(features, dtype=dtype) if biased else None
    assert takes(x, weight)
    got = gated_linear(x, weight, bias, "triton")
    assert got.shape == (rows, features // 2)
    assert torch.equal(got, silu_mul(linear(x, weight, bias, "triton"), "triton"))


@triton_runs
@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize(("block_n", "block_k"), [(16, 64), (32, 128), (64, 256)])
def test_gates_however_cut(block_n: int, block_k: int, splits: int):
    from octavo.kernels.linear.triton import Tiling
    from octavo.kernels.linear.triton import linear as cut

    weight, tiling = numbers(200, 832, dtype=torch.float16), Tiling(block_n, block_k, splits, 2, 3)
    for x in (numbers(9, 832, dtype=torch.float16), numbers(100, 832, dtype=torch.float16)):
        for _ in range(2):
            want = silu_mul(cut(x, weight, None, tiling), "triton")
            assert torch.equal(cut(x, weight, None, tiling, gated=True), want)


@triton_runs
def test_a_slice_is_read_as_it_lies():
    whole, weight = numbers(5, 256, dtype=torch.float16), numbers(96, 128, dtype=torch.float16)
    assert_product(linear(whole[:, 64:192], weight, None, "triton"), whole[:, 64:192], weight, None)


@triton_runs
def test_what_is_left_to_the_library():
    from octavo.kernels.linear.triton import takes

    few, weight = numbers(4, 128, dtype=torch.float16), numbers(64, 128, dtype=torch.float16)
    assert takes(few, weight)
    assert not takes(few.float(), weight.float())
    assert not takes(few.new_ones(FEW_ROWS[-1] + 1, 128), weight)
    assert not takes(few[:, :72], weight[:, :72])
    assert not takes(few[:0], weight)


def test_what_comes_in_parts():
    assert [choose_parts(rows, 4096, 11008) for rows in (1, 64, 65, 178, 320, 321, 8192)] == [1, 1, 2, 2, 2, 1, 1]
    assert choose_parts(178, 4097, 11008) == choose_parts(178, 4096, 11008 + 64) == 1


@pytest.mark.parametrize("rows", [5, 100, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_parts_add_up(dtype: torch.dtype, rows: int):
    x, weight = numbers(rows, 512, dtype=dtype), numbers(192, 512, dtype=dtype)
    impl = "triton" if DEVICE == "cuda" else "reference"
    got = product_in_parts(x, weight, impl)
    parted = DEVICE == "cuda" and rows == 100 and dtype != torch.float32
    assert got.shape == ((2, rows, 192) if parted else (rows, 192))
    if dtype == torch.float32:
        assert torch.equal(got, linear(x, weight, None, impl))
    else:
        assert_product(got.sum(0).to(dtype) if parted else got, x, weight, None)
