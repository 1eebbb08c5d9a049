"""Deterministic mode: what a sequence gets is the same, bit for bit, alone and in company, whole and in chunks."""

import pytest
import torch

from octavo.base.errors import BadValue
from octavo.engine.llm import LLM
from octavo.engine.sampling import SamplingParams

ENGINE = {"kv_cache_memory": "16384tok", "kv_self_test": "off", "deterministic": True}


def texts(count: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(3)
    lengths = [5 + 61 * number % 190 for number in range(count)]
    return [torch.randint(3, 320, (length,), generator=draw).tolist() for length in lengths]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("cache", ["bf16", "int8", "int4"])
def test_scores_do_not_depend_on_the_batch(checkpoint, dtype, cache):
    folder, _ = checkpoint("llama")
    many = texts(9)
    base = LLM(folder, dtype=dtype, kv_cache_dtype=cache, max_num_batched_tokens=1024, **ENGINE)
    want = base.score(many)
    for tokens in (64, 77, 333):
        other = base.with_cache(max_num_batched_tokens=tokens, max_num_seqs=tokens % 7 + 2)
        for one, rows in zip(reversed(want), other.score(many[::-1]), strict=True):
            assert torch.equal(one, rows)
    for ids, rows in zip(many[:3], want, strict=False):
        assert torch.equal(base.with_cache(enable_prefix_caching=False).score(ids), rows)


def test_answers_do_not_depend_on_company(checkpoint):
    folder, _ = checkpoint("llama")
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, logprobs=2)
    llm = LLM(folder, dtype="bfloat16", kv_cache_dtype="int8", **ENGINE)
    together = llm.generate(texts(9), params)
    for ids, output in zip(texts(9)[:3], together, strict=False):
        [alone] = llm.with_cache(max_num_batched_tokens=64).generate([ids], params)
        assert (alone.token_ids, alone.outputs[0].logprobs) == (output.token_ids, output.outputs[0].logprobs)


def test_weights_are_made_for_one_mode(checkpoint):
    folder, _ = checkpoint("llama")
    with pytest.raises(BadValue, match="cannot change deterministic"):
        LLM(folder, **ENGINE).with_cache(deterministic=False)
