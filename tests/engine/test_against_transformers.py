"""Greedy tokens and logits equal transformers', for every family and switch."""

import pytest
import torch

from octavo.engine.llm import LLM
from octavo.engine.sampling import SamplingParams

VARIANTS = {
    "llama-gqa": ("llama", {}),
    "llama-mha-tied": ("llama", {"num_key_value_heads": 6, "tie_word_embeddings": True}),
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 80}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "llama-dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}),
    "llama-llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 256,
            }
        },
    ),
    "llama-yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 512,
            }
        },
    ),
    "mistral-window": ("mistral", {"sliding_window": 24, "head_dim": 96}),
    "qwen2": ("qwen2", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 128}),
}  # fmt: skip


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_greedy_tokens(checkpoint, prompts, variant, kernels):
    family, overrides = VARIANTS[variant]
    folder, theirs = checkpoint(family, **overrides)
    ours = LLM(folder, dtype="float32", kv_cache_dtype="fp32", kv_cache_memory="4096tok", kernels=kernels)
    answers = ours.generate(prompts, SamplingParams(max_tokens=24, temperature=0, ignore_eos=True))
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = prompt + answer.token_ids
        with torch.no_grad():
            logits = theirs(torch.tensor([ids])).logits[0]
        want = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
        assert answer.token_ids == want, f"{variant}: greedy tokens differ for a prompt of {len(prompt)}"
        difference = (ours.score(ids) - logits.log_softmax(-1)).abs().max()
        assert difference <= 1e-3, f"{variant}: log-probabilities differ by {difference:.2e}"
