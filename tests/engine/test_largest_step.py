"""The largest steps there can be are real batches: they run, and have the sizes that memory is measured for."""

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
