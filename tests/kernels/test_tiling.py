"""How attention's work is cut: what must hold for any number of sequences, and what was measured to be best."""

from types import SimpleNamespace
from typing import Any

import pytest

from octavo.kernels.attention import ROW_BLOCKS
from octavo.kernels.attention.tiling import LEAST_PAGES, Chip, Tiling, choose_tiling

H200 = Chip(132, True)
CODES: Any = SimpleNamespace(one_warp=True, key_compute="int8")
FLOATS: Any = SimpleNamespace(one_warp=False, key_compute="bfloat16")
EXACT: Any = SimpleNamespace(one_warp=False, key_compute="float32")


def tiling(
    codec: Any, sequences: int, kv_heads: int = 8, pages: int = 32, rows: int = 4, staged: bool = True
) -> Tiling:
    return choose_tiling((codec, codec), rows, 16896, sequences, kv_heads, pages, H200, staged)


@pytest.mark.parametrize("kv_heads", [1, 2, 8, 32])
@pytest.mark.parametrize("codec", [CODES, FLOATS], ids=["codes", "floats"])
def test_programs_of_staged_pages(codec, kv_heads: int):
    most = 8 if codec is CODES else 6  # that a multiprocessor holds, and merges
    for sequences in range(1, 600, 7):
        for pages in (1, 3, 4, 8, 32, 128, 2048):
            cut = tiling(codec, sequences, kv_heads, pages)
            if not cut.staged:
                assert codec is FLOATS and sequences * kv_heads >= 4 * 132
                continue
            assert cut.rows == ROW_BLOCKS[0] and cut.warps == 1
            assert cut.splits == 1 or cut.splits * sequences * kv_heads <= most * 132
            assert cut.splits == 1 or cut.splits * LEAST_PAGES <= pages
            assert cut.splits <= max(8, pages // 8)


def test_what_was_measured():
    assert [tiling(CODES, sequences).splits for sequences in (8, 32, 64, 128, 500)] == [8, 4, 2, 1, 1]
    assert [tiling(CODES, sequences, 32).splits for sequences in (1, 8, 32, 128)] == [8, 4, 1, 1]
    assert [tiling(FLOATS, sequences).splits for sequences in (1, 8, 32)] == [8, 4, 3]
    assert tiling(CODES, 4, pages=128).splits == 16


def test_what_is_not_staged():
    assert not tiling(CODES, 32, rows=9).staged
    assert not tiling(CODES, 32, staged=False).staged
    assert not tiling(EXACT, 32, staged=False).staged
    assert tiling(EXACT, 1, rows=1, staged=False).rows == 16


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("codec", [CODES, FLOATS], ids=["codes", "floats"])
def test_one_page_has_one_program(codec, staged: bool):
    """Kernels that split and kernels that do not are both compiled at start, of one page and of the longest context."""
    assert tiling(codec, 1, pages=1, staged=staged).splits == 1
    assert tiling(codec, 1, pages=64, staged=staged).splits > 1
    assert tiling(codec, 500, 32, pages=64, staged=staged).splits == 1
