"""Decode inputs brought to where a recorded step reads them: one launch does what torch does."""

import os

import pytest
import torch

from octavo.kernels.inputs import DecodeInputs, bring

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON = pytest.param("triton", marks=pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason="needs a GPU, or Triton's interpreter"
))  # fmt: skip


def inputs(rows: int, width: int, first: int) -> DecodeInputs:
    """Numbers that are all different."""
    wide = torch.arange(first, first + 3 * rows, device=DEVICE).view(3, rows)
    narrow = torch.arange(first, first + rows * (width + 1), dtype=torch.int32, device=DEVICE)
    return DecodeInputs(*wide, narrow[:rows], narrow[rows:].view(rows, width))


@pytest.mark.parametrize("impl", ["reference", TRITON])
@pytest.mark.parametrize(("count", "size", "width"), [(1, 1, 1), (3, 8, 5), (5, 5, 200), (7, 9, 300)])
def test_rows_are_copied_and_padding_is_made(impl: str, count: int, size: int, width: int):
    if impl == "triton":
        pytest.importorskip("triton")
    given, into, before = inputs(count, width, 10_000), inputs(10, 300, 0), inputs(10, 300, 0)
    bring(given, into, size, impl)
    for name in ("tokens", "positions", "slots", "context"):
        assert torch.equal(getattr(into, name)[:count], getattr(given, name))
        assert torch.equal(getattr(into, name)[size:], getattr(before, name)[size:])
    assert (into.slots[count:size] == -1).all() and (into.context[count:size] == 1).all()
    assert torch.equal(into.tables[:count, :width], given.tables)
    assert torch.equal(into.tables[count:], before.tables[count:])
    assert torch.equal(into.tables[:count, width:], before.tables[:count, width:])
