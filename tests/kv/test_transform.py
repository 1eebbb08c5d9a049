"""The rotation is one orthonormal matrix for Q, K and V, whatever the head width."""

import numpy as np
import pytest
import torch

from octavo.kv.transform import hadamard, rotate, unrotate

WIDTHS = [*range(1, 65), 72, 80, 88, 96, 100, 104, 112, 120, 128, 144, 160, 176, 192, 224, 256, 512]


@pytest.mark.parametrize("width", WIDTHS)
def test_orthonormal(width):
    matrix = hadamard(width).astype(np.float64)
    assert matrix.shape == (width, width)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(width), atol=3e-7)


@pytest.mark.parametrize("width", [2, 4, 8, 12, 16, 20, 24, 32, 64, 80, 96, 112, 128, 256])
def test_every_entry_has_the_same_size_where_a_hadamard_matrix_is_known(width):
    """So one outlier spreads over all dimensions evenly."""
    np.testing.assert_allclose(np.abs(hadamard(width)), width**-0.5, rtol=1e-6)


@pytest.mark.parametrize("width", [36, 40, 64, 80, 96, 112, 128, 160])
def test_scores_do_not_change(width):
    draw = torch.Generator().manual_seed(width)
    q, k = torch.randn(2, 50, width, generator=draw)
    torch.testing.assert_close(rotate(q) @ rotate(k).T, q @ k.T, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("width", [3, 36, 64, 80, 96, 128])
def test_unrotate_undoes_rotate(width):
    vectors = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(unrotate(rotate(vectors)), vectors, atol=1e-5, rtol=1e-5)


def test_an_outlier_is_spread():
    vector = torch.zeros(1, 128)
    vector[0, 17] = 100.0
    assert rotate(vector).abs().max() < 9.0
