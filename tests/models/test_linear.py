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


def test_only_a_gpu_pads():
    weight = torch.randn(83, 48)
    assert pad_rows(weight) is weight
