"""A weight padded with rows of zeros gives what the weight gives."""

import pytest
import torch

from octavo.models.linear import Linear, pad_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_padding_is_not_seen(dtype):
    weight, x = torch.randn(83, 48).to(dtype), torch.randn(5, 48).to(dtype)
    padded = Linear(torch.cat((weight, weight.new_zeros(45, 48))), out_features=83)
    got = padded(x)
    assert got.shape == (5, 83) and (padded.out_features, padded.in_features) == (83, 48)
    torch.testing.assert_close(got, Linear(weight)(x))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gated(dtype, invariant, biased):
    """SwiGLU's gate, written out, over what the layer gives; bf16 weights are packed where the CPU does that."""
    weight, x = torch.randn(96, 48).to(dtype) / 7, torch.randn(40, 48).to(dtype)
    layer = Linear(weight, torch.randn(96).to(dtype) if biased else None)
    layer.invariant = invariant
    gate, up = layer(x).float().chunk(2, 1)
    got = layer.gated(x, "reference")
    assert got.shape == (40, 48) and got.dtype == dtype
    want = (gate / (1 + (-gate).exp())).to(dtype).float() * up
    torch.testing.assert_close(got.float(), want, rtol=torch.finfo(dtype).eps * 2, atol=1e-6)


def test_only_a_gpu_pads():
    weight = torch.randn(83, 48)
    assert pad_rows(weight) is weight
