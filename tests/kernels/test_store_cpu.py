"""The CPU store against the reference: the same bytes but for single flips by the last bit of rope or rotation."""

from dataclasses import replace

import pytest
import torch

from octavo.kernels.store import store
from tests.kernels.kernel_cases import PAIRS, make_rope, make_sequences, random_vectors

CONTEXTS, NEW = (70, 1, 130, 64), (70, 1, 0, 13)


def _stored(impl, dtype, rotate, head_dim, rope, number, fused=False):
    sequences = make_sequences(dtype, CONTEXTS, 2, head_dim, rotate)
    rows = sequences.rows(NEW)
    rows = replace(rows, slots=rows.slots.where(rows.positions != 5, -1))
    both = random_vectors(sum(NEW), 10, head_dim, 1).to(number)
    q, k, v = both.split((6, 2, 2), dim=1)  # strided, as a fused projection gives them
    return store(q, k, v, rope, rows, sequences.layer, impl), sequences.layer


def _compare(got, want, least_equal):
    (got_q, got_layer), (want_q, want_layer) = got, want
    assert got_q.dtype == torch.float32
    torch.testing.assert_close(got_q, want_q, rtol=2e-5, atol=2e-5)
    layout = got_layer.layout
    for slot in (*layout.key_slots, *layout.value_slots):
        equal = (got_layer.plane(slot).view(torch.uint8) == want_layer.plane(slot).view(torch.uint8)).float().mean()
        assert equal >= least_equal, f"{slot.plane.name}: {equal:.5f} equal"


@pytest.mark.parametrize("dtype", PAIRS)
@pytest.mark.parametrize("head_dim", [64, 80, 128, 18])
def test_exact_without_rope_and_rotation(dtype, head_dim):
    args = (dtype, "off", head_dim, None, torch.float32)
    _compare(_stored("cpu", *args), _stored("reference", *args), 1.0)


@pytest.mark.parametrize("number", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", PAIRS)
@pytest.mark.parametrize(("head_dim", "width"), [(64, 32), (96, 24), (256, 128), (8, 4), (46, 20)])
def test_rope_and_rotation(dtype, head_dim, width, number):
    args = (dtype, "on", head_dim, make_rope(200, width), number)
    # fp32 planes differ in last bits everywhere; the codes of coarser schemes must not
    exact = "fp32" in dtype
    _compare(_stored("cpu", *args), _stored("reference", *args), 0.5 if exact else 0.985)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_codes_flip_rarely(head_dim):
    args = ("int8,int4", "on", head_dim, make_rope(200, head_dim // 2), torch.bfloat16)
    (_, got), (_, want) = _stored("cpu", *args), _stored("reference", *args)
    for slots in (got.layout.key_slots, got.layout.value_slots):
        assert (got.plane(slots[0]) == want.plane(slots[0])).float().mean() >= 0.999


def test_mixed_inputs_are_widened():
    sequences = make_sequences(PAIRS[0], (9,), 2, 64)
    q, k, v = (random_vectors(9, 2, 64, seed) for seed in range(3))
    out = [
        store(q, k.bfloat16(), v, None, sequences.rows((9,)), sequences.layer, impl) for impl in ("cpu", "reference")
    ]
    torch.testing.assert_close(*out)
