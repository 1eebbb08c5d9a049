"""Before the first request: each shape that kernels are compiled for is run once, and leaves nothing behind."""

from itertools import pairwise

import pytest

from octavo.engine.sampling import SamplingParams
from octavo.engine.warm_up import Variant, load_products, product_rows, variants, warm_up
from octavo.kernels.attention import ROW_BLOCKS
from octavo.kernels.linear import FEW_ROWS


@pytest.mark.parametrize("group", [1, 3, 4, 7, 8, 12, 16])
def test_every_row_block_is_filled(group):
    def block(rows: int) -> int:
        return min((size for size in ROW_BLOCKS if size >= rows), default=ROW_BLOCKS[-1])

    several = variants(group, 64, 1024, 4096)
    possible = {(block(new * group), context) for new in range(1, 200) for context in (64, 4096)}
    assert {(block(variant.new * group), variant.context) for variant in several} == possible
    assert {variant.new for variant in several} >= {*FEW_ROWS, FEW_ROWS[-1] + 1}
    assert several[-2:] == [Variant(1024, 4096), Variant(1024, 4096, dense=True)]


def test_small_engines_have_fewer():
    assert variants(1, 64, 4, 40) == [Variant(4, 40), Variant(4, 40, dense=True)]


def test_many_sequences_are_run_once():
    def batches(most_new: int, sequences: int) -> list[int]:
        several = variants(4, 64, most_new, 4096, sequences)
        return [variant.sequences for variant in several if variant.sequences > 1]

    assert batches(1024, 100) == [2, 4, 8, 16, 32, 64, 100]
    assert batches(1024, 64) == [2, 4, 8, 16, 32, 64]
    assert batches(16, 100) == [2, 4, 8, 16]
    assert batches(1024, 3) == [2, 3]
    assert batches(1024, 1) == []
    assert Variant(48, 48, sequences=2) in variants(4, 64, 8192, 48, 40)


def test_it_leaves_no_trace(tiny, prompts):
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    want = [answer.token_ids for answer in tiny.generate(prompts, params)]
    other = tiny.with_cache(debug=True)
    warm_up(other.engine.runner, variants(3, 64, 256, 512, 20))
    assert [answer.token_ids for answer in other.generate(prompts, params)] == want


def test_products_of_any_number_of_rows():
    rows = product_rows(8192)
    assert rows[0] == 8 and 8192 - 256 < rows[-1] <= 8192 and len(rows) < 200
    assert all(0 < after - before <= max(8, before / 32) for before, after in pairwise(rows))
    assert product_rows(16) == [8, 16]


def test_products_are_tried_as_a_step_makes_them(tiny, monkeypatch):
    runner, seen = tiny.engine.runner, []
    monkeypatch.setattr(runner.model, "try_products", lambda rows, impl, head: seen.append((rows, impl, head)))
    load_products(runner, 96, 80)
    assert seen == [(rows, runner.impl, rows <= 80) for rows in range(8, 97, 8)]
    monkeypatch.undo()
    load_products(runner, 96, 80)
    monkeypatch.setattr(runner, "invariant", True)
    monkeypatch.setattr(runner, "model", None)
    load_products(runner, 96, 80)
