"""A pool sized by the share of a GPU: full, with preemption, for many steps, and nothing grows."""

import gc

import pytest
import torch

from octavo.engine.llm import LLM
from octavo.engine.sampling import SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MIB = 1 << 20
SIZES = {
    "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128, "hidden_size": 1024,
    "intermediate_size": 2048, "vocab_size": 32000, "max_position_embeddings": 8192,
}  # fmt: skip


def used() -> int:
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free


@pytest.fixture(autouse=True)
def alone():
    gc.collect()
    torch.cuda.empty_cache()


def test_a_pool_of_the_default_share_stays_within_it(checkpoint):
    folder, _ = checkpoint("llama", **SIZES)
    total = torch.cuda.mem_get_info()[1]
    llm = LLM(folder, device="cuda", kv_cache_dtype="bf16", max_num_seqs=2048, max_num_batched_tokens=4096)
    # 2048 sequences of 8192 tokens would need 256 GiB: the share decides
    assert 0.8 * total < llm.cache.allocated_bytes < 0.9 * total
    assert used() <= 0.9 * total + 64 * MIB
    reserved = torch.cuda.memory_reserved()
    params = SamplingParams(max_tokens=8, temperature=0.8, top_p=0.9, ignore_eos=True)
    prompts = [[(7 * at + seed) % 32000 for at in range(3000)] for seed in range(64)]
    assert len(llm.generate(prompts, params)) == 64
    assert torch.cuda.memory_reserved() - reserved <= 64 * MIB
    assert used() <= 0.9 * total + 64 * MIB


@pytest.mark.parametrize("cache", ["bf16", "int4"])
def test_nothing_grows_when_the_pool_is_full(checkpoint, cache):
    folder, _ = checkpoint("llama", **SIZES)
    llm = LLM(folder, device="cuda", kv_cache_dtype=cache, kv_cache_memory="20000tok", max_num_seqs=64,
              max_num_batched_tokens=2048, max_model_len=4096)  # fmt: skip
    engine, reserved = llm.engine, torch.cuda.memory_reserved()
    params = SamplingParams(max_tokens=300, temperature=0, ignore_eos=True)
    mixed = SamplingParams(
        max_tokens=300, temperature=1.0, top_p=0.9, top_k=40, repetition_penalty=1.1, ignore_eos=True
    )
    requests = [
        engine.add(f"r{n}", [(13 * at + n) % 32000 for at in range(100 + 37 * n)], mixed if n % 2 else params)
        for n in range(60)
    ]  # fmt: skip
    fullest = 0
    while engine.busy:
        engine.step()
        fullest = max(fullest, engine.pages.held)
    assert fullest >= 0.98 * engine.limits.num_pages
    assert sum(request.preemptions for request in requests) > 0
    assert torch.cuda.memory_reserved() - reserved <= 64 * MIB
