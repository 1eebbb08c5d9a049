"""The engine on a GPU: the CPU's tokens in fp32, and the one rule, with the Triton kernels."""

import pytest
import torch

from octavo.engine.llm import LLM
from octavo.engine.sampling import SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PARAMS = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
FAMILIES = {"llama": {}, "mistral": {"sliding_window": 24, "head_dim": 96}, "qwen3": {"head_dim": 128}}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp8", "int8", "int4", "int8,int4"])
def test_the_cpus_tokens(checkpoint, prompts, family, dtype):
    folder, _ = checkpoint(family, **FAMILIES[family])
    options = {"dtype": "float32", "kv_cache_dtype": dtype, "kv_cache_memory": "4096tok", "debug": True}
    cpu = LLM(folder, device="cpu", kernels="reference", **options)
    gpu = LLM(folder, device="cuda", **options)
    assert gpu.cache.kernels == "triton"
    for prompt in prompts:
        assert (gpu.score(prompt).cpu() - cpu.score(prompt)).abs().max() < (1e-3 if dtype == "fp32" else 0.05)
    want = [answer.token_ids for answer in cpu.generate(prompts, PARAMS)]
    assert [answer.token_ids for answer in gpu.generate(prompts, PARAMS)] == want
    tight = gpu.with_cache(kv_cache_memory="320tok", max_num_batched_tokens=40)
    assert [answer.token_ids for answer in tight.generate(prompts, PARAMS)] == want
