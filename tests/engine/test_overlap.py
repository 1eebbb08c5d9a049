"""Steps read one late give what steps read at once give: tokens, texts, log-probabilities and reasons."""

import random

import pytest
import torch

from octavo.engine.llm import LLM
from octavo.engine.request import Request
from octavo.engine.sampling import SamplingParams

POOLS = {
    "roomy": {"kv_cache_memory": "4096tok"},
    "chunks": {"kv_cache_memory": "4096tok", "max_num_batched_tokens": 19, "max_num_seqs": 5},
    "tight": {"kv_cache_memory": "240tok", "block_size": 16, "max_num_batched_tokens": 48},
    "starved": {"kv_cache_memory": "192tok", "block_size": 8, "enable_prefix_caching": False, "max_num_seqs": 7},
}


@pytest.fixture(scope="module")
def plain(readable) -> LLM:
    return LLM(readable, dtype="float32", kv_cache_dtype="fp32", kv_self_test="off", kv_cache_memory="4096tok")


def params(draw: random.Random, late: bool) -> SamplingParams:
    """Any mix of what a request can ask for; `late`: that leaves steps in flight."""
    wishes = {
        "temperature": draw.choice([0.0, 0.0, 0.7, 1.5]),
        "top_p": draw.choice([1.0, 0.9]),
        "top_k": draw.choice([0, 30]),
        "min_p": draw.choice([0.0, 0.02]),
        "repetition_penalty": draw.choice([1.0, 1.0 if late else 1.3]),
        "frequency_penalty": draw.choice([0.0, 0.0 if late else 0.6]),
        "logit_bias": draw.choice([{}, {}, {40: 3.0, 41: -5.0}]),
        "logprobs": draw.choice([None, None, 0, 3]),
        "prompt_logprobs": draw.choice([None, None if late else 2]),
        "stop": draw.choice([(), (), ("e",), ("ab", "Q")]),
        "stop_token_ids": draw.choice([(), (), (60, 61, 62)]),
        "ignore_eos": draw.random() < 0.5,
        "max_tokens": draw.choice([1, 7, 60, 60]),
    }
    return SamplingParams(**wishes, min_tokens=draw.choice([0, 0, wishes["max_tokens"] // 2]))


def requests(seed: int) -> list[tuple[list[int], SamplingParams, bool]]:
    """Prompts, some of which begin alike, what they ask for, and whether they are only scored. Of an even seed none
    has to be read at once."""
    draw, late = random.Random(seed), seed % 2 == 0
    shared = [draw.randrange(5, 261) for _ in range(70)]
    out = []
    for _ in range(14):
        tail = [draw.randrange(5, 261) for _ in range(draw.choice([1, 5, 20, 60]))]
        out.append((shared[: draw.choice([0, 0, 66])] + tail, params(draw, late), not late and draw.random() < 0.15))
    return out


def answers(plain: LLM, pool: str, seed: int, overlap: bool) -> tuple[list[tuple], int]:
    """Everything that each request got, and how many steps were left in flight. Some arrive while others run."""
    engine = plain.with_cache(**POOLS[pool], debug=True, seed=seed).engine
    engine.overlap = overlap
    waiting, jobs, texts, late = requests(seed), [], {}, 0
    while waiting or engine.busy:
        for prompt, wish, scores in waiting[:3]:
            jobs.append(engine.add(str(len(jobs)), prompt, wish, scores=scores))
        waiting = waiting[3:]
        for _ in range(4):
            for event in engine.step():
                texts.setdefault(event.request_id, []).append((event.token, event.finish_reason, event.text))
            late += engine._flying is not None
    assert engine.pages.held == 0
    return [everything(job, texts[job.id]) for job in jobs], late


def everything(job: Request, events: list[tuple]) -> tuple:
    assert [token for token, _, _ in events if token is not None] == job.output
    assert job.text is not None and job.text.text == "".join(text for _, _, text in events)
    assert [reason for _, reason, _ in events] == [None] * (len(events) - 1) + [job.finish_reason]
    return events, job.logprobs, job.prompt_logprobs, job.scored


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("pool", POOLS)
def test_one_late_is_the_same(plain, pool, seed):
    want, never = answers(plain, pool, seed, overlap=False)
    got, late = answers(plain, pool, seed, overlap=True)
    assert never == 0 and (late > 5 or seed % 2)
    for ours, theirs in zip(got, want, strict=True):
        assert ours[0] == theirs[0]
        for some, others in zip(ours[1:3], theirs[1:3], strict=True):
            assert [(one.token, one.logprob) for one in some] == [
                (one.token, pytest.approx(one.logprob, abs=1e-4)) for one in others
            ]
            assert [len(one.top) for one in some] == [len(one.top) for one in others]
        for some, others in zip(ours[3], theirs[3], strict=False):
            torch.testing.assert_close(some[: len(others)], others[: len(some)], rtol=0, atol=1e-4)


def test_pools_preempt_and_share(plain):
    """The mixes above do what they are for, also while a step is in flight."""
    for pool in ("tight", "starved"):
        engine = plain.with_cache(**POOLS[pool], debug=True).engine
        engine.overlap, caught = True, 0
        for number, (prompt, wish, _) in enumerate(requests(0)):
            engine.add(str(number), prompt, wish)
        while engine.busy:
            before = engine.scheduler.preemptions
            flying = engine._flying is not None
            engine.step()
            caught += flying and engine.scheduler.preemptions > before
        assert caught > 0
        assert pool == "starved" or (engine.pages.prefix is not None and engine.pages.prefix.hits > 0)


@pytest.mark.parametrize("seed", range(6))
def test_aborts_at_any_time(plain, seed):
    """Whoever is left gets what it gets in peace, and no page is lost."""
    want, _ = answers(plain, "roomy", 1, overlap=False)
    engine = plain.with_cache(**POOLS["tight"], debug=True, seed=1).engine
    engine.overlap, draw = True, random.Random(seed)
    jobs = [engine.add(str(n), *one[:2], scores=one[2]) for n, one in enumerate(requests(1))]
    order, gone = [job.id for job in jobs if draw.random() < 0.5], set()
    draw.shuffle(order)
    while engine.busy:
        assert not gone & {event.request_id for event in engine.step()}, "an event after the end"
        if order and draw.random() < 0.5:
            gone.add(victim := order.pop())
            event = engine.abort(victim)
            assert event is None or event.finish_reason == "abort"
            engine.pages.check()
    assert engine.pages.held == 0 and not engine.requests
    for job, expected in zip(jobs, want, strict=True):
        if job.finish_reason != "abort":
            assert job.output == [token for token, _, _ in expected[0] if token is not None]


def test_drained_while_a_step_runs(plain):
    engine = plain.with_cache(debug=True).engine
    engine.overlap = True
    engine.add("a", [7, 8, 9], SamplingParams(max_tokens=9, temperature=0, ignore_eos=True))
    assert engine.step() == [] and engine.step()[0].token is not None and engine.busy
    engine.drain()
    assert not engine.busy and engine.step() == []
    engine.add("a", [7, 8, 9], SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
    steps = [engine.step() for _ in range(3)]
    assert [len(events) for events in steps] == [0, 1, 1] and not engine.busy, "no row is run past the last token"
    assert engine.times.steps == 4


def test_what_is_read_at_once(plain):
    """Penalties and prompts whose logits are wanted go step by step, and nothing else does."""
    engine = plain.with_cache().engine
    engine.overlap = True
    cases = {"presence_penalty": 0.5, "prompt_logprobs": 1, "logprobs": 2, "temperature": 0.5, "min_tokens": 2}
    for at_once, (name, value) in zip((True, True, False, False, False), cases.items(), strict=True):
        engine.add(name, [7, 8, 9], SamplingParams(max_tokens=3, **{name: value}))
        assert bool(engine.step()) == at_once, name
        engine.drain()


def test_deterministic_to_the_bit(readable):
    """Company and order of steps change nothing, log-probabilities included."""
    llm = LLM(readable, dtype="bfloat16", kv_cache_dtype="int8", kv_self_test="off", kv_cache_memory="4096tok",
              deterministic=True)  # fmt: skip
    wish = [SamplingParams(max_tokens=10, temperature=t, seed=3, logprobs=2, ignore_eos=True) for t in (0.0, 0.8)]
    prompts = [prompt for prompt, _, _ in requests(3)[:6]]
    found = []
    for overlap in (False, True):
        other = llm.with_cache(max_num_batched_tokens=64)
        other.engine.overlap = overlap
        found.append([(a.token_ids, a.outputs[0].logprobs) for a in other.generate(prompts, wish * 3)])
    assert found[0] == found[1]
