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


PROMPTS = (
    "The capital of France is", "Once upon a time", "def fibonacci(n):", "The three laws of motion are",
    "In 1969, the first", "Water boils at", "My favourite recipe begins with", "The opposite of cold is",
    "Dear Sir or Madam,", "List of prime numbers: 2, 3, 5,", "Photosynthesis is the process by which",
    "The stock market fell today because", "Shakespeare wrote", "To install the package, run",
    "The mitochondria is", "A haiku about the sea:", "The Great Wall of China", "SELECT name FROM users WHERE",
    "If a train leaves the station at noon,", "The meaning of the word 'octavo' is",
)  # fmt: skip


@pytest.mark.parametrize("count", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_the_packaged_model(count):
    """SmolLM2, from the same dequantized GGUF: 64 greedy tokens of each prompt, and all their logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = LLM("smollm2", dtype="float32", kv_self_test="off", kv_cache_dtype="fp32", kv_cache_memory="8192tok")
    spec, source = ours.source.spec, ours.source
    config = LlamaConfig(
        vocab_size=spec.vocab_size, hidden_size=spec.width, intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers, num_attention_heads=spec.heads, num_key_value_heads=spec.kv_heads,
        max_position_embeddings=spec.max_position, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).float().eval()
    missing, unexpected = theirs.load_state_dict({name: source.load(name).float() for name in source.names()}, False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    theirs.tie_weights()
    params = SamplingParams(max_tokens=64, temperature=0, ignore_eos=True)
    for answer in ours.generate(list(PROMPTS[:count]), params):
        ids = answer.prompt_token_ids + answer.token_ids
        with torch.no_grad():
            logits = theirs(torch.tensor([ids])).logits[0]
        first = len(answer.prompt_token_ids) - 1
        assert answer.token_ids == logits[first:-1].argmax(-1).tolist(), answer.prompt
        assert (ours.score(ids) - logits.log_softmax(-1)).abs().max() <= 1e-3
