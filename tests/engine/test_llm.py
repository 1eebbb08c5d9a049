"""The offline and the async API on the packaged model, and on a tiny one."""

import asyncio

import pytest
import torch

from octavo import LLM, AsyncLLM, SamplingParams
from octavo.base.errors import BadValue, CapacityError, CheckpointError, RequestError, UnknownChoice, UsageError

GREEDY = SamplingParams(max_tokens=16, temperature=0)


@pytest.fixture(scope="module")
def smollm2() -> LLM:
    return LLM("smollm2", dtype="float32", kv_self_test="off", kv_cache_memory="4096tok", debug=True)


def test_text_in_text_out(smollm2):
    [answer] = smollm2.generate("The capital of France is", GREEDY)
    assert answer.text.startswith(" Paris")
    assert answer.text == smollm2.tokenizer.decode(answer.token_ids)
    assert answer.prompt == "The capital of France is"
    assert smollm2.engine.pages.held == 0


def test_chat_stops_by_itself_and_hits_the_cache_on_the_next_turn(smollm2):
    messages = [{"role": "system", "content": "You answer in one word. " * 12}, {"role": "user", "content": "2 + 2?"}]
    params = SamplingParams(max_tokens=64, temperature=0)
    [first] = smollm2.chat(messages, params)
    assert first.finish_reason == "stop"
    assert first.cached_tokens == 0
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "3 + 3?"}]
    [second] = smollm2.chat(messages, params)
    assert second.cached_tokens >= 64


def test_a_full_pool_gives_the_same_text_as_an_empty_one(smollm2):
    questions = [f"Question {n}: what is {n} times {n + 1}? Think step by step." for n in range(4)]
    shared = (
        "You are a careful teacher who explains arithmetic to children with patience and examples. " * 5
    )  # 66 tokens
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    empty = smollm2.with_cache(kv_cache_dtype="fp32", enable_prefix_caching=False)
    want = [empty.generate(shared + question, params)[0].token_ids for question in questions]
    tight = smollm2.with_cache(kv_cache_dtype="fp32", kv_cache_memory="256tok", debug=True)  # 4 pages, 1 of them shared
    got = [answer.token_ids for answer in tight.generate([shared + q for q in questions], params)]
    assert got == want
    assert tight.engine.pages.prefix is not None
    assert tight.engine.pages.prefix.hits > 0


def test_stop_strings_lengths_and_reasons(smollm2):
    [answer] = smollm2.generate("One, two, three, four,", SamplingParams(max_tokens=32, temperature=0, stop=" seven"))
    assert answer.finish_reason == "stop"
    assert "seven" not in answer.text
    [cut] = smollm2.generate("One, two, three, four,", SamplingParams(max_tokens=3, temperature=0))
    assert (cut.finish_reason, len(cut.token_ids)) == ("length", 3)
    token = cut.token_ids[1]
    [by_id] = smollm2.generate(
        "One, two, three, four,", SamplingParams(max_tokens=9, temperature=0, stop_token_ids=[token])
    )
    assert (by_id.finish_reason, by_id.token_ids) == ("stop", cut.token_ids[:2])
    [late] = smollm2.generate(
        "One, two, three, four,",
        SamplingParams(max_tokens=9, temperature=0, stop_token_ids=[token], min_tokens=5),
    )
    assert len(late.token_ids) >= 5


def test_seeds_repeat_whatever_the_batch(tiny, prompts):
    params = [SamplingParams(max_tokens=12, temperature=1.0, seed=n, ignore_eos=True) for n in range(len(prompts))]
    alone = [tiny.generate([prompt], one)[0].token_ids for prompt, one in zip(prompts, params, strict=True)]
    together = [answer.token_ids for answer in tiny.generate(prompts, params)]
    tight = tiny.with_cache(kv_cache_memory="256tok", max_num_batched_tokens=40, debug=True)
    squeezed = [answer.token_ids for answer in tight.generate(prompts, params)]
    assert alone == together == squeezed
    assert len({tuple(ids) for ids in alone}) == len(prompts)


def test_logprobs_agree_with_score(tiny, prompts):
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True, logprobs=4, prompt_logprobs=2)
    for prompt in prompts[1:4]:
        [answer] = tiny.generate([prompt], params)
        scored = tiny.score(prompt + answer.token_ids)
        for offset, found in enumerate(answer.outputs[0].logprobs):
            row = scored[len(prompt) - 1 + offset]
            assert found.token == answer.token_ids[offset]
            assert found.logprob == pytest.approx(float(row[found.token]), abs=1e-4)
            assert [token for token, _ in found.top] == row.topk(4).indices.tolist()
        assert [found.token for found in answer.prompt_logprobs] == prompt[1:]
        for at, found in enumerate(answer.prompt_logprobs):
            assert found.logprob == pytest.approx(float(scored[at, prompt[at + 1]]), abs=1e-4)


def test_score_survives_preemption_and_chunks(tiny, prompts):
    want = tiny.score(prompts)
    tight = tiny.with_cache(kv_cache_memory="256tok", max_num_batched_tokens=33, debug=True)
    for got, row, prompt in zip(tight.score(prompts), want, prompts, strict=True):
        assert got.shape == (len(prompt), 320)
        assert (got - row).abs().max() < 1e-4
        assert torch.allclose(got.exp().sum(-1), torch.ones(len(prompt)), atol=1e-4)


def test_ids_may_be_tensors_or_arrays(tiny, prompts):
    import numpy as np

    want = tiny.generate([prompts[1]], sampling_params=GREEDY)[0].token_ids
    for ids in (torch.tensor(prompts[1]), np.array(prompts[1]), [torch.tensor(prompts[1])], tuple(prompts[1])):
        assert tiny.generate(ids, GREEDY)[0].token_ids == want
    exact = tiny.score(prompts[1])
    assert torch.equal(tiny.score(torch.tensor(prompts[1])), exact)
    assert torch.equal(tiny.score([np.array(prompts[1])])[0], exact)
    with pytest.raises(RequestError, match="empty"):
        tiny.score([])


@pytest.mark.slow
def test_async_streams_do_not_mix(smollm2):
    asyncio.run(_async_streams(smollm2))


async def _async_streams(reference: LLM):
    prompts = ["The capital of France is", "Water boils at", "The opposite of hot is", "A triangle has"]
    want = {prompt: reference.generate(prompt, GREEDY)[0].token_ids for prompt in prompts}
    llm = AsyncLLM("smollm2", dtype="float32", kv_self_test="off", kv_cache_memory="4096tok")
    try:

        async def one(prompt: str, leave_after: int | None) -> tuple[str, list[int]]:
            tokens = []
            async for event in llm.generate(prompt, GREEDY):
                if event.token is not None:
                    tokens.append(event.token)
                if leave_after is not None and len(tokens) == leave_after:
                    break
            return prompt, tokens

        found = await asyncio.gather(*(one(p, n) for p in prompts for n in (None, 3)))
        for prompt, tokens in found:
            assert tokens == want[prompt][: len(tokens)]
            assert len(tokens) in (3, len(want[prompt]))
        with pytest.raises(RequestError, match="empty"):
            await anext(llm.generate([], GREEDY))
        for _ in range(50):
            if llm.llm.engine.pages.held == 0:
                break
            await asyncio.sleep(0.02)
        assert llm.llm.engine.pages.held == 0, "streams that were left hold pages"
    finally:
        llm.close()


def test_an_abandoned_stream_frees_its_pages(tiny, prompts):
    stream = tiny.stream(prompts[-1], SamplingParams(max_tokens=50))
    next(stream)
    assert tiny.engine.pages.held > 0
    stream.close()
    assert tiny.engine.pages.held == 0


@pytest.mark.parametrize(
    ("prompt", "error", "words"),
    [
        ([], RequestError, "empty"),
        ("", RequestError, "empty"),
        ([1, 320], RequestError, "token id 320 is outside the vocabulary"),
        ([-1], RequestError, "token id -1"),
        ([5] * 2048, RequestError, "the model takes 2048"),
    ],
)
def test_prompts_that_cannot_be(tiny, prompt, error, words):
    with pytest.raises(error, match=words):
        tiny.generate([[4, 5], prompt], GREEDY)
    assert not tiny.engine.busy, "the good prompt of the same call was left in the queue"
    good, bad = tiny.generate([[4, 5], prompt], GREEDY, keep_going=True)
    assert good.token_ids
    assert bad.error is not None


def test_another_cache_changes_the_cache_and_nothing_else(tiny):
    assert tiny.with_cache(max_model_len=256).cache.max_model_len == 256
    with pytest.raises(BadValue, match="dtype, model"):
        tiny.with_cache(dtype="bfloat16", model="smollm2")


def test_a_prompt_longer_than_the_pool(tiny):
    small = tiny.with_cache(kv_cache_memory="128tok")
    assert small.cache.max_model_len == 128
    with pytest.raises(RequestError, match="128"):
        small.generate([[5] * 128], GREEDY)
    [edge] = small.generate([[5] * 127], SamplingParams(max_tokens=5, temperature=0, ignore_eos=True))
    assert (len(edge.token_ids), edge.finish_reason) == (1, "length")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"kv_cache_dtype": "int9"}, UnknownChoice, "int9.*\n.*int"),
        ({"kv_cache_dtype": "4"}, BadValue, "ambiguous"),
        ({"kv_cache_dtype": "int8,int4,int8"}, BadValue, "int8,int4,int8"),
        ({"dtype": "float12"}, UnknownChoice, "float12"),
        ({"device": "tpu"}, UsageError, "tpu"),
        ({"kernels": "fast"}, UnknownChoice, "fast"),
        ({"kv_rotate": "maybe"}, BadValue, "maybe"),
        ({"max_model_len": 99999}, CapacityError, "2048"),
        ({"max_model_len": 0}, BadValue, "at least 1"),
        ({"block_size": 12}, BadValue, "multiple of 8"),
        ({"max_num_seqs": 0}, BadValue, "max_num_seqs"),
        ({"kv_cache_memory": "a lot"}, BadValue, "a lot"),
        ({"kv_cache_memory": "900TiB"}, CapacityError, "free"),
        ({"kv_cache_memory": "5000"}, CapacityError, "one page"),
        ({"batch": 3}, BadValue, "batch"),
    ],
)
def test_options_that_cannot_be(checkpoint, options, error, words):
    folder, _ = checkpoint("llama")
    with pytest.raises(error) as found:
        LLM(folder, **options)
    import re

    assert re.search(words, str(found.value), re.DOTALL)


def test_models_that_cannot_be(tmp_path):
    with pytest.raises(CheckpointError):
        LLM(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError):
        LLM(str(tmp_path))


def test_a_stored_nan_is_named_in_debug_mode(checkpoint):
    folder, _ = checkpoint("llama")
    llm = LLM(folder, dtype="float32", kv_cache_memory="512tok", debug=True)
    llm.engine.runner.model.blocks[1][1].qkv._weight[6 * 64] = float("nan")  # first row of K's first head
    from octavo.base.errors import OctavoError

    with pytest.raises(OctavoError, match="layer 1, kv head 0: the key"):
        llm.generate([[4, 5, 6]], GREEDY)


def test_scores_of_the_end_alone(tiny, prompts):
    """Rows from `first` on are those of the whole, whatever was shared before them."""
    whole = tiny.score(prompts[4])
    llm = tiny.with_cache(kv_cache_dtype="fp32", debug=True, max_num_batched_tokens=64, block_size=8)
    for first in (0, 1, 40, 64):
        for _ in range(2):  # the second time the start is in the prefix index
            tail = llm.score([prompts[4], prompts[3]], first=[first, min(first, 63)])[0]
            assert tail.shape == (65 - first, 320)
            assert (tail - whole[first:]).abs().max() <= 1e-4
    with pytest.raises(RequestError, match="score_from 65 is no position"):
        llm.score(prompts[4], first=65)
