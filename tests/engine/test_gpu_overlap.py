"""On a GPU a step is read while the next one runs: the same answers as one by one, and no waiting in between."""

import pytest
import torch

from octavo.engine.llm import LLM
from octavo.engine.request import Request
from octavo.engine.sampler import sample
from octavo.engine.sampling import SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
OPTIONS = {"device": "cuda", "kv_self_test": "off", "kv_cache_memory": "4096tok"}
MIX = (
    {"temperature": 0},
    {"temperature": 0.8, "top_p": 0.9, "seed": 3},
    {"temperature": 1.2, "top_k": 20, "min_p": 0.01, "seed": 4},
    {"temperature": 0, "logprobs": 2},
    {"temperature": 0, "logit_bias": {9: 4.0}, "min_tokens": 5},
)
PENALTIES = ({"temperature": 0, "repetition_penalty": 1.3}, {"temperature": 0.7, "frequency_penalty": 0.5, "seed": 5})


def wishes(count: int, mix=MIX) -> list[SamplingParams]:
    return [SamplingParams(max_tokens=6 + 5 * n, ignore_eos=True, **mix[n % len(mix)]) for n in range(count)]


def both_ways(llm: LLM, prompts: list[list[int]], each: list[SamplingParams]) -> list[list]:
    found = []
    for overlap in (False, True):
        llm.engine.overlap = overlap
        found.append([(a.token_ids, a.outputs[0].logprobs, a.finish_reason) for a in llm.generate(prompts, each)])
    return found


def test_overlap_is_on_where_there_is_a_device(checkpoint):
    folder, _ = checkpoint("llama")
    assert LLM(folder, **OPTIONS).engine.overlap
    assert not LLM(folder, **(OPTIONS | {"device": "cpu"})).engine.overlap


@pytest.mark.parametrize("mix", [MIX, MIX + PENALTIES], ids=["late", "at once"])
@pytest.mark.parametrize("cache", ["bf16", "int8"])
def test_deterministic_to_the_bit(checkpoint, prompts, cache, mix):
    folder, _ = checkpoint("llama")
    llm = LLM(folder, dtype="bfloat16", kv_cache_dtype=cache, deterministic=True, **OPTIONS)
    for pool in ({}, {"kv_cache_memory": "320tok", "max_num_batched_tokens": 40}):
        one, late = both_ways(llm.with_cache(**pool, enable_prefix_caching=False), prompts, wishes(len(prompts), mix))
        assert one == late


@pytest.mark.parametrize("eager", [False, True])
def test_the_same_tokens_in_fp32(checkpoint, prompts, eager):
    """Graphs are filled from ids that only the device knows."""
    folder, _ = checkpoint("llama")
    llm = LLM(folder, dtype="float32", kv_cache_dtype="fp32", enforce_eager=eager, **OPTIONS)
    assert (llm.engine.runner.graphs is None) == eager
    one, late = both_ways(llm, prompts, wishes(len(prompts)))
    assert [ids for ids, _, _ in one] == [ids for ids, _, _ in late]
    stops = [SamplingParams(max_tokens=40, temperature=0, stop_token_ids=tuple(range(3, 60)))] * len(prompts)
    one, late = both_ways(llm, prompts, stops)
    assert [(ids, reason) for ids, _, reason in one] == [(ids, reason) for ids, _, reason in late]
    assert llm.engine.pages.held == 0 and not llm.engine.busy


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_decode_step_is_launched_without_waiting(checkpoint, prompts, monkeypatch):
    """Torch raises where it would wait for the device."""
    folder, _ = checkpoint("llama")
    engine = LLM(folder, dtype="bfloat16", kv_cache_dtype="int8", **OPTIONS).engine
    engine.overlap = True
    for number, one in enumerate(wishes(len(prompts))):
        engine.add(str(number), prompts[number], one)
    launch, checked = engine._launch, []

    def watched():
        if not all(request.decoding for request in engine.scheduler.running) or engine.scheduler.waiting:
            return launch()
        checked.append(engine._flying is not None)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(engine, "_launch", watched)
    while engine.busy:
        engine.step()
    assert sum(checked) > 10


def test_aborts_while_a_step_runs(checkpoint, prompts):
    """The others get what they get without them, from pages that were just released too."""
    folder, _ = checkpoint("llama")
    llm = LLM(folder, dtype="bfloat16", kv_cache_dtype="int8", deterministic=True, **OPTIONS)
    engine = llm.with_cache(kv_cache_memory="640tok", enable_prefix_caching=False, debug=True).engine
    engine.overlap = True  # debug mode has its checks on the host, which is no reason to read at once
    greedy = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    want = [answer.token_ids for answer in llm.generate(prompts, greedy)]
    jobs = []
    for turn in range(5):
        jobs += [(engine.add(f"{turn}-{n}", ids, greedy), n) for n, ids in enumerate(prompts)]
        for step in range(6):
            engine.step()
            engine.abort(f"{turn}-{step}" if step % 2 else f"{turn - 1}-{step + 1}")
    while engine.busy:
        engine.step()
    left = [(job, n) for job, n in jobs if job.finish_reason == "length"]
    assert len(left) > 5 and all(job.output == want[n] for job, n in left)


@pytest.mark.parametrize("vocab_size", [331, 151_936])
def test_draws_are_the_cpus(vocab_size):
    torch.manual_seed(0)
    rows = torch.randn(48, vocab_size) * 4
    filters = [{"temperature": t, "top_k": k, "top_p": p, "min_p": m}
               for t in (0.6, 1.0, 1.7) for k in (0, 1, 40, 500) for p in (1.0, 0.95) for m in (0.0, 0.02)]  # fmt: skip
    requests = [Request(str(n), (1,), SamplingParams(**one), 0, 9, n, b"") for n, one in enumerate(filters)]
    want = [chosen.token for chosen in sample(rows, requests, ())]
    got = [chosen.token for chosen in sample(rows.cuda(), requests, ())]
    assert got == want
