"""Keys without their bias: the same scores exactly, and far tamer vectors where the bias is large."""

import pytest
import torch

from octavo.base.errors import UsageError
from octavo.calibrate.divergence import measure
from octavo.engine.llm import LLM
from octavo.engine.sampling import SamplingParams


@pytest.fixture(scope="module")
def biased(biased_checkpoint) -> tuple[LLM, torch.nn.Module]:
    folder, model = biased_checkpoint(16)
    options = {"dtype": "float32", "kv_cache_dtype": "fp32", "kv_cache_memory": "4096tok"}
    return LLM(folder, **options), model


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
@pytest.mark.parametrize("rotate", ["on", "off"])
def test_it_is_exact(biased, prompts, kernels, rotate):
    exact, theirs = biased
    llm = exact.with_cache(kv_bias_free="on", kv_rotate=rotate, kernels=kernels)
    assert "bias-free" in llm.cache.plan
    for prompt in prompts[2:]:
        with torch.no_grad():
            want = theirs(torch.tensor([prompt])).logits[0].log_softmax(-1)
        assert (llm.score(prompt) - want).abs().max() <= 1e-3


def test_chunks_and_prefix_hits_change_nothing(biased, prompts):
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    want = [biased[0].generate([prompt], params)[0].token_ids for prompt in prompts]
    llm = biased[0].with_cache(kv_bias_free="on", max_num_batched_tokens=33, debug=True)
    for _ in range(2):
        assert [answer.token_ids for answer in llm.generate(prompts, params)] == want


def test_it_is_on_by_itself_below_16_bits_and_saves_the_model(biased, prompts):
    exact, _ = biased
    want = exact.score(prompts)

    def kl(**cache) -> float:
        return measure(list(zip(want, exact.with_cache(**cache).score(prompts), strict=True))).kl_mean

    default, plain = kl(kv_cache_dtype="int8"), kl(kv_cache_dtype="int8", kv_bias_free="off")
    assert default < plain / 10, f"int8: KL {default:.1e} bias-free, {plain:.1e} with the bias stored"
    four, plain_four = kl(kv_cache_dtype="int4"), kl(kv_cache_dtype="int4", kv_bias_free="off")
    assert four < plain_four / 10, f"int4: KL {four:.1e} bias-free, {plain_four:.1e} with the bias stored"
    assert "bias-free" not in exact.with_cache(kv_cache_dtype="bf16").cache.plan


def test_a_model_without_a_key_bias_refuses_it(tiny):
    with pytest.raises(UsageError, match="adds no bias"):
        tiny.with_cache(kv_bias_free="on")
