"""How attention's work is cut: what must hold for any number of sequences, and what was measured to be best."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.engine.warm_up import variants
from octavo.kernels.attention import ROW_BLOCKS
from octavo.kernels.attention.tiling import Chip, StagedTiling, Tiling, choose_tiling

H200 = Chip(132, True)
CODES: Any = SimpleNamespace(one_warp=True, key_compute="int8")
FLOATS: Any = SimpleNamespace(one_warp=False, key_compute="bfloat16")
EXACT: Any = SimpleNamespace(one_warp=False, key_compute="float32")


def tiling(
    codec: Any, sequences: int, kv_heads: int = 8, pages: int = 32, rows: int = 4, staged: bool = True,
    head_bytes: int = 16896,
) -> Tiling:  # fmt: skip
    return choose_tiling((codec, codec), rows, head_bytes, sequences, kv_heads, pages, H200, staged)


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 8, 32, 200, 2000])
@pytest.mark.parametrize("codec", [CODES, FLOATS], ids=["codes", "floats"])
def test_programs_of_staged_pages(codec, kv_heads: int):
    most = 8 if codec is CODES else 6  # that a multiprocessor holds, and merges
    for sequences in range(1, 600, 7):
        cut = tiling(codec, sequences, kv_heads)
        assert isinstance(cut, StagedTiling)
        assert cut.rows == ROW_BLOCKS[0] and cut.warps == cut.splits == 1
        assert cut.shares <= 1 or cut.shares * kv_heads <= min(cut.places, most) * 132


def test_what_was_measured():
    of = StagedTiling.of
    assert [tiling(CODES, sequences) for sequences in (1, 33)] == [of(66, early=True, places=4)] * 2
    assert [tiling(CODES, sequences) for sequences in (34, 66)] == [of(132, early=True, places=8)] * 2
    assert [tiling(CODES, sequences) for sequences in (67, 230)] == [of(132, places=8)] * 2
    assert [tiling(CODES, sequences) for sequences in (231, 800)] == [of(0, places=10)] * 2
    assert [tiling(CODES, sequences, 32) for sequences in (17, 57)] == [of(33, places=8)] * 2
    several = [tiling(CODES, sequences, head_bytes=8704) for sequences in (16, 17, 500, 660)]
    assert several == [of(66, early=True, places=4), of(132, early=True, places=8), of(0), of(0, early=True)]
    assert [tiling(CODES, sequences, head_bytes=8704).shares for sequences in (329, 330)] == [132, 0]
    assert [tiling(FLOATS, sequences) for sequences in (1, 33)] == [of(33, early=True, places=2)] * 2
    assert [tiling(FLOATS, sequences) for sequences in (34, 66)] == [of(66, early=True, places=4)] * 2
    assert [tiling(FLOATS, sequences, 32) for sequences in (17, 132)] == [of(0, early=True, places=4)] * 2
    assert tiling(FLOATS, 133, 32) == of(0, early=True)


@pytest.mark.parametrize("shares", [0, 5])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("number_bytes", "places"), [(0.5, 4), (0.5, 10), (1, 4), (1, 8), (1, 10), (2, 2), (2, 4)])
def test_no_more_programs_than_there_are_places(number_bytes: float, places: int, head_dim: int, shares: int):
    page_bytes = int(64 * (2 * head_dim * number_bytes + 8))
    cut = StagedTiling.of(shares, places=places)
    merging = 8 * head_dim * 4 / 1024 if shares else 0
    taken = page_bytes / 1024 + merging + 1 + cut.padding(page_bytes, head_dim, 228)
    assert places * taken <= 228 < (places + 1) * taken
    assert StagedTiling.of(shares).padding(page_bytes, head_dim, 228) == 0


def test_what_is_not_staged():
    assert not isinstance(tiling(CODES, 32, rows=9), StagedTiling)
    assert not isinstance(tiling(CODES, 32, staged=False), StagedTiling)
    assert not isinstance(tiling(EXACT, 32, staged=False), StagedTiling)
    assert tiling(EXACT, 1, rows=1, staged=False).rows == 16


@pytest.mark.parametrize("codec", [CODES, FLOATS], ids=["codes", "floats"])
def test_one_page_has_one_program(codec):
    """Kernels that split and kernels that do not are both compiled at start, of one page and of the longest context."""
    assert tiling(codec, 1, pages=1, staged=False).splits == 1
    assert tiling(codec, 1, pages=64, staged=False).splits > 1
    assert tiling(codec, 500, 32, pages=64, staged=False).splits == 1


@pytest.mark.parametrize("head_bytes", [8704, 16896, 32768])
@pytest.mark.parametrize("kv_heads", [1, 3, 8, 32])
@pytest.mark.parametrize("codec", [CODES, FLOATS], ids=["codes", "floats"])
def test_what_is_compiled_at_start_is_all_there_is(codec, kv_heads: int, head_bytes: int):
    """Whatever makes another kernel of a decode step's attention has been met in a variant."""

    def compiled(sequences: int, pages: int):
        cut = tiling(codec, sequences, kv_heads, pages, head_bytes=head_bytes)
        if isinstance(cut, StagedTiling):
            return replace(cut, shares=min(cut.shares, 1))
        return replace(cut, splits=min(cut.splits, 2))

    several = [variant for variant in variants(4, 64, 1024, 4096, 512) if variant.new == 1]
    warm = {compiled(variant.sequences, -(-variant.context // 64)) for variant in several}
    assert {compiled(sequences, pages) for sequences in range(1, 513) for pages in (1, 64)} <= warm
