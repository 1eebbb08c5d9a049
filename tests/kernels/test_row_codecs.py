"""Every scheme's Numba codec against its torch encode and decode, bit for bit."""

import numpy as np
import pytest
import torch
from numba import njit

from octavo.kv.layout import PageLayout
from octavo.kv.row_codec import decode_tile, encode_row, rows_of
from octavo.kv.schemes import SCHEMES


@njit
def _round_trip(rows, block, vectors, dim, tile):
    for t in range(len(vectors)):
        encode_row(rows, block, t, vectors[t], dim)
    decode_tile(rows, block, 0, len(vectors), dim, tile)


def _vectors(dim):
    generator = torch.Generator().manual_seed(dim)
    scales = torch.tensor([1.0, 1e-9, 1e-6, 3e-5, 1e-3, 0.02, 30.0, 500.0, 7e4, 1e30])
    vectors = torch.randn(60, dim, generator=generator) * scales.repeat(6)[:, None]
    extra = torch.zeros(4, dim)
    extra[1] = 0.1
    extra[2] = torch.linspace(-448, 470, dim)
    extra[3] = torch.arange(dim) * 2.0**-10  # ties, and fp8's subnormals
    return torch.cat((vectors, extra))


@pytest.mark.parametrize("name", list(SCHEMES))
@pytest.mark.parametrize("dim", [64, 80, 34])
def test_bits(name, dim):
    scheme, vectors = SCHEMES[name], _vectors(dim)
    layout = PageLayout(scheme, scheme, 1, dim)
    block, tile = np.full(layout.head_bytes, 0xFF, np.uint8), np.full((64, dim + 16), np.nan, np.float32)
    _round_trip(rows_of(scheme, layout.key_slots), block, vectors.numpy(), dim, tile)
    planes = scheme.encode(vectors)
    for slot, want in zip(layout.key_slots, planes, strict=True):
        got = torch.from_numpy(block[slot.offset : slot.offset + 64 * slot.row_bytes]).view(64, slot.row_bytes)
        assert torch.equal(got, want.contiguous().view(torch.uint8)), slot.plane.name
    assert torch.equal(torch.from_numpy(tile[:, :dim].copy()), scheme.decode(planes))
    assert np.isnan(tile[:, dim:]).all()


@pytest.mark.parametrize("name", list(SCHEMES))
def test_not_a_number_is_survived(name):
    layout = PageLayout(SCHEMES[name], SCHEMES[name], 1, 64)
    block, tile = np.zeros(layout.head_bytes, np.uint8), np.zeros((64, 80), np.float32)
    vectors = np.ones((3, 64), np.float32)
    vectors[1, 5], vectors[1, 6] = np.nan, np.inf
    _round_trip(rows_of(SCHEMES[name], layout.key_slots), block, vectors, 64, tile)
    assert np.allclose(tile[[0, 2], :64], 1.0)
