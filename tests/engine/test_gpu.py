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
    bound = 1e-3 if dtype == "fp32" else 0.05  # in log-probability; the fast kernels keep q to 15 bits
    tight = gpu.with_cache(kv_cache_memory="320tok", max_num_batched_tokens=40)
    for llm in (gpu, tight):
        for prompt, answer in zip(prompts, llm.generate(prompts, PARAMS), strict=True):
            ids = prompt + answer.token_ids
            want = cpu.score(ids)
            assert (llm.score(ids).cpu() - want).abs().max() < bound
            # each token is the CPU's best one, or so near to it that the bound decides between them
            chosen = want[len(prompt) - 1 : -1].gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
            assert (want[len(prompt) - 1 : -1].amax(-1) - chosen).max() < 2 * bound
