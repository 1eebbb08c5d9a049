"""The largest steps there can be are real batches: they run, and have the sizes that memory is measured for."""

from dataclasses import replace

import pytest
import torch

from octavo.base.errors import BadValue
from octavo.engine.largest_step import StepLimits, decode_step, largest_step, run_largest
from octavo.engine.llm import LLM
from octavo.engine.options import EngineOptions


def test_prompts_of_full_length_until_the_step_is_full():
    step = largest_step(StepLimits(1000, 8, 400, 64), "cpu")
    assert step.rows.context.tolist() == [400, 400, 200] and step.rows.query_start.tolist() == [0, 400, 800, 1000]
    assert step.rows.block_tables.shape == (3, 7) and step.rows.max_context == 400
    assert len(step.tokens) == 1000 and step.wanted.tolist() == list(range(992, 1000))
    assert int(step.rows.slots.max()) == 63  # all on the first page
    few = largest_step(StepLimits(1000, 2, 40, 64), "cpu")  # two sequences of 40 tokens is all there can be
    assert len(few.tokens) == 80 and len(few.wanted) == 2


def test_a_token_of_every_sequence():
    step = decode_step(StepLimits(1000, 8, 400, 64), "cpu")
    assert len(step.tokens) == len(step.wanted) == 8 and step.rows.max_query == 1
    assert step.rows.block_tables.shape == (8, 7)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_rows_that_nobody_wants_change_nothing(checkpoint, family):
    """The last layer leaves them out, whichever they are; what is stored is the same."""
    llm = LLM(checkpoint(family)[0], dtype="float32", kernels="reference", kv_cache_memory="128tok", device="cpu")
    runner, step = llm.engine.runner, largest_step(StepLimits(60, 1, 60, 64), "cpu")
    tokens = torch.randint(3, 320, (60,), generator=torch.Generator().manual_seed(1))
    pages = [layer.pages for layer in runner.pool.layers]

    def logits(wanted: list[int]) -> torch.Tensor:
        for page in pages:
            page.zero_()
        return runner.forward(replace(step, tokens=tokens, wanted=torch.tensor(wanted, dtype=torch.int64)))

    every, stored = logits(list(range(60))), [page.clone() for page in pages]
    assert not torch.equal(every[0], every[1])
    for wanted in ([59], [0], [3, 4, 31, 58], list(range(59)), []):
        torch.testing.assert_close(logits(wanted), every[wanted])
        assert all(torch.equal(*pair) for pair in zip(pages, stored, strict=True))


def test_they_run_through_a_model(checkpoint):
    llm = LLM(checkpoint("llama")[0], dtype="float32", kernels="reference", kv_cache_memory="128tok", device="cpu")
    seen = []
    runner = llm.engine.runner
    plain = runner.forward
    runner.forward = lambda batch: seen.append(plain(batch)) or seen[-1]
    run_largest(runner, StepLimits(70, 4, 40, 64))
    assert [tuple(logits.shape) for logits in seen] == [(4, 320)] * 3
    assert all(torch.isfinite(logits).all() for logits in seen)


@pytest.mark.parametrize("share", [0.0, 1.01])
def test_shares_that_cannot_be(share):
    with pytest.raises(BadValue, match="gpu_memory_utilization"):
        EngineOptions(model="smollm2", gpu_memory_utilization=share)
