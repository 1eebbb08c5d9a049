"""The engine on a GPU: the CPU's tokens, through the Triton kernels, launched one by one and as CUDA graphs."""

from collections.abc import Sequence

import pytest
import torch

from octavo.engine.batch import Batch
from octavo.engine.llm import LLM
from octavo.engine.sampling import SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PARAMS = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
FAMILIES = {"llama": {}, "mistral": {"sliding_window": 24, "head_dim": 96}, "qwen3": {"head_dim": 128}}
# every scheme and every family once: each pair is a set of kernels to compile
CASES = [
    ("llama", "int8"), ("llama", "bf16"), ("mistral", "int8,int4"), ("llama", "int4"), ("qwen3", "fp8"),
    ("llama", "fp32"),
]  # fmt: skip
OPTIONS = {"dtype": "float32", "kv_cache_memory": "4096tok"}


def check_against(cpu: LLM, gpus: Sequence[LLM], prompts: list[list[int]], bound: float) -> None:
    """Log-probabilities within `bound` of the CPU's, and each token its best one, or so near to it that the bound
    decides between them."""
    for gpu in gpus:
        assert gpu.cache.kernels == "triton"
        for prompt, answer in zip(prompts, gpu.generate(prompts, PARAMS), strict=True):
            ids = prompt + answer.token_ids
            want = cpu.score(ids)
            assert (gpu.score(ids).cpu() - want).abs().max() < bound
            chosen = want[len(prompt) - 1 : -1].gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
            assert (want[len(prompt) - 1 : -1].amax(-1) - chosen).max() < 2 * bound


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_the_cpus_tokens(checkpoint, prompts, family, dtype):
    folder, _ = checkpoint(family, **FAMILIES[family])
    cpu = LLM(folder, device="cpu", kernels="reference", kv_cache_dtype=dtype, **OPTIONS)
    graphs = LLM(folder, device="cuda", kv_cache_dtype=dtype, **OPTIONS)
    eager = graphs.with_cache(debug=True)
    tight = graphs.with_cache(kv_cache_memory="320tok", max_num_batched_tokens=40)
    assert graphs.engine.runner.graphs is not None and eager.engine.runner.graphs is None
    # in log-probability; the fast kernels keep q to 15 bits
    check_against(cpu, (graphs, eager, tight), prompts, 1e-3 if dtype == "fp32" else 0.05)


def test_keys_without_their_bias(biased_checkpoint, prompts):
    folder, _ = biased_checkpoint(64)
    cpu = LLM(folder, device="cpu", kernels="reference", kv_cache_dtype="int8", **OPTIONS)
    graphs = LLM(folder, device="cuda", kv_cache_dtype="int8", **OPTIONS)
    assert "bias-free" in graphs.cache.plan
    check_against(cpu, (graphs, graphs.with_cache(enforce_eager=True)), prompts, 0.05)


@pytest.mark.parametrize(
    "cache",
    [{"kv_cache_dtype": "int8-static"}, {"kv_cache_dtype": "int4"}, {"kv_cache_dtype": "int8", "kv_balance": "on"}],
)
def test_calibrated_caches(readable, tiny_asset, prompts, cache):
    """Transforms with matrices of their own, on the device; the self-test runs there as well."""
    cpu = LLM(readable, device="cpu", kernels="reference", kv_asset=tiny_asset, **cache, **OPTIONS)
    graphs = LLM(readable, device="cuda", kv_asset=tiny_asset, **cache, **OPTIONS)
    assert graphs.engine.runner.graphs is not None and graphs.cache.plan == cpu.cache.plan
    assert graphs.cache.self_test.kl_mean == pytest.approx(cpu.cache.self_test.kl_mean, rel=0.1, abs=1e-5)
    check_against(cpu, (graphs, graphs.with_cache(enforce_eager=True)), prompts, 0.05)
    for count in graphs.clipped:
        assert 0 <= count.share < 0.05 and count.numbers > 0


@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_of_any_size(checkpoint, prompts, tied):
    """A head whose rows are no multiple of 64 is padded; nobody sees it, and a tied embedding shares its memory."""
    folder, _ = checkpoint("llama", vocab_size=331, tie_word_embeddings=tied)
    cpu = LLM(folder, device="cpu", kernels="reference", kv_cache_dtype="bf16", **OPTIONS)
    gpu = LLM(folder, device="cuda", kv_cache_dtype="bf16", **OPTIONS)
    assert cpu.score(prompts[1]).shape == gpu.score(prompts[1]).shape == (len(prompts[1]), 331)
    check_against(cpu, (gpu,), prompts, 0.05)
    table = gpu.engine.runner.model.embedding
    assert table.untyped_storage().nbytes() == (384 if tied else 331) * table.shape[1] * 4


@pytest.mark.parametrize(("family", "dtype"), [("llama", "int8"), ("qwen3", "int8"), ("llama", "bf16")])
def test_graphs_replay_what_eager_steps_compute(checkpoint, prompts, family, dtype, monkeypatch):
    """Each decode step both ways: the same tokens but for ties; and nothing compiles once an engine is there."""
    folder, _ = checkpoint(family, **FAMILIES[family])
    llm = LLM(folder, device="cuda", kv_cache_dtype=dtype, **OPTIONS)
    runner = llm.engine.runner
    graphs, sizes = runner.graphs, []
    assert graphs is not None

    def both(batch: Batch) -> torch.Tensor:
        with torch.inference_mode():
            want = runner.forward(batch)
            if graphs.takes(batch):
                got = graphs.run(batch)
                sizes.append(len(batch.tokens))
                torch.testing.assert_close(got.log_softmax(-1), want.log_softmax(-1), rtol=0, atol=0.02)
                top = want.gather(1, got.argmax(-1, keepdim=True))[:, 0]
                assert (want.amax(-1) - top).max() < 0.04
            return want

    monkeypatch.setattr(runner, "run", both)
    before = compiled()
    each = [SamplingParams(max_tokens=3 + 4 * i, temperature=0, ignore_eos=True) for i in range(len(prompts))]
    llm.generate(prompts, each)
    assert set(sizes) >= {1, 2, 3, 4, 5, 6}
    assert compiled() == before


@pytest.mark.parametrize("cache", ["bf16", "int8"])
def test_a_model_in_bfloat16(checkpoint, prompts, cache):
    """Logits stay in 16 bits until somebody looks; prompts take the dense kernel, over pages as they lie or decoded.
    A CPU in bfloat16 is within 0.06 of one in fp32."""
    folder, _ = checkpoint("llama", head_dim=128)
    cpu = LLM(folder, device="cpu", kernels="reference", kv_cache_dtype=cache, **OPTIONS)
    gpu = LLM(folder, device="cuda", kv_cache_dtype=cache, **(OPTIONS | {"dtype": "bfloat16"}))
    before = compiled()
    gpu.generate(prompts, PARAMS)
    assert compiled() == before
    assert gpu.score(prompts[-1]).dtype == torch.float32
    check_against(cpu, (gpu,), prompts, 0.15)


def compiled() -> int:
    from octavo.kernels.activation.triton import silu_mul_kernel
    from octavo.kernels.attention.triton_dense import unpack_kernel
    from octavo.kernels.attention.triton_flash import flash_kernel
    from octavo.kernels.attention.triton_flash_hopper import hopper_flash_kernel
    from octavo.kernels.attention.triton_kernel import attend_kernel
    from octavo.kernels.attention.triton_staged import attend_staged_kernel
    from octavo.kernels.inputs.triton import bring_kernel
    from octavo.kernels.linear.triton import linear_kernel
    from octavo.kernels.norm.triton import norm_kernel
    from octavo.kernels.store.triton import store_kernel
    from octavo.kernels.store.triton_matrix import store_matrix_kernel
    from octavo.kernels.store.triton_wide import store_wide_kernel

    stores = (store_kernel, store_matrix_kernel, store_wide_kernel)
    prompts = (unpack_kernel, flash_kernel, hopper_flash_kernel)
    others = (norm_kernel, silu_mul_kernel, linear_kernel, bring_kernel)
    kernels = (attend_kernel, attend_staged_kernel, *prompts, *stores, *others)
    return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())


@pytest.mark.parametrize("cache", ["bf16", "int8", "int4"])
def test_deterministic_mode_is_exact(checkpoint, cache):
    """Bit for bit the same scores, whatever the batches, chunks and splits would have been."""
    folder, _ = checkpoint("llama")
    draw = torch.Generator().manual_seed(3)
    many = [torch.randint(3, 320, (length,), generator=draw).tolist() for length in (5, 66, 127, 400, 1000, 188, 31)]
    options = {"kv_cache_memory": "16384tok", "kv_self_test": "off", "deterministic": True, "kv_cache_dtype": cache}
    base = LLM(folder, dtype="bfloat16", device="cuda", max_num_batched_tokens=2048, **options)
    want = base.score(many)
    for tokens in (64, 333):
        other = base.with_cache(max_num_batched_tokens=tokens, max_num_seqs=9)
        for one, rows in zip(reversed(want), other.score(many[::-1]), strict=True):
            assert torch.equal(one, rows)
    assert torch.equal(base.with_cache(enable_prefix_caching=False).score(many[3]), want[3])
