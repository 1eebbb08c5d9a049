"""Requests with a grammar in the loop: alone, in a batch, preempted, overlapped, and when the grammar gives up."""

import json
import re

import pytest

from octavo.base.errors import BadValue, RequestError
from octavo.engine.grammar_spec import GrammarSpec
from octavo.engine.llm import LLM
from octavo.engine.sampling import SamplingParams

EOS = 2
DIGITS = GrammarSpec("regex", "[0-9]{3,6}")
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "word": {"type": "string", "pattern": "^[a-z]{1,8}$"}},
    "required": ["ok", "word"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm(readable) -> LLM:
    return LLM(readable, dtype="float32", kv_cache_dtype="fp32", kv_cache_memory="4096tok", block_size=64)


def params(grammar: GrammarSpec, **more) -> SamplingParams:
    return SamplingParams(grammar=grammar, **{"max_tokens": 200, "temperature": 0.0} | more)


def test_json(llm):
    for seed in range(4):
        [output] = llm.generate("Hello", params(GrammarSpec.of_schema(SCHEMA), temperature=3.0, seed=seed))
        found = json.loads(output.text)
        assert set(found) == {"ok", "word"} and isinstance(found["ok"], bool)
        assert output.finish_reason == "stop"
        assert output.token_ids[-1] != EOS  # nothing could follow the last brace: no step was spent on saying so


def test_choice_and_bias(llm):
    choices = GrammarSpec.of_choices(["yes", "no"])
    assert llm.generate("Hello", params(choices))[0].text in ("yes", "no")
    [letter] = llm.tokenizer.encode("n")
    assert llm.generate("Hello", params(choices, logit_bias={letter: 100.0}))[0].text == "no"


def test_a_mapping_is_a_grammar(llm):
    given = SamplingParams(grammar={"kind": "regex", "text": "abc"})  # type: ignore[arg-type]
    assert given.grammar == GrammarSpec("regex", "abc")
    assert llm.generate("Hello", given)[0].text == "abc"
    for bad in ({"text": "a"}, {"kind": "regex", "text": "a", "more": 1}):
        with pytest.raises(BadValue, match="nothing else"):
            SamplingParams(grammar=bad)  # type: ignore[arg-type]


def test_min_tokens_and_ignore_eos(llm):
    ends_early = {"logit_bias": {EOS: 100.0}}
    assert len(llm.generate("Hello", params(DIGITS, **ends_early))[0].text) == 3
    assert len(llm.generate("Hello", params(DIGITS, min_tokens=5, **ends_early))[0].text) == 5
    [output] = llm.generate("Hello", params(DIGITS, min_tokens=50, ignore_eos=True))
    assert len(output.text) == 6 and output.finish_reason == "stop"


def test_stop_strings_and_length(llm):
    letters = GrammarSpec("regex", "(ab)+")
    [output] = llm.generate("Hello", params(letters, stop="aba"))
    assert (output.text, output.finish_reason) == ("", "stop")
    [output] = llm.generate("Hello", params(letters, max_tokens=5, logit_bias={EOS: -100.0}))
    assert (output.text, output.finish_reason) == ("ababa", "length")


def test_logprobs_are_the_models_own(llm):
    [free] = llm.generate("Hello", SamplingParams(max_tokens=1, temperature=0.0, logprobs=5))
    [output] = llm.generate("Hello", params(DIGITS, max_tokens=1, logprobs=5))
    assert output.outputs[0].logprobs[0].top == free.outputs[0].logprobs[0].top
    assert output.outputs[0].logprobs[0].token == output.token_ids[0]


def test_what_cannot_be_compiled_is_not_kept(llm):
    with pytest.raises(RequestError, match="unclosed"):
        llm.generate("Hello", params(GrammarSpec("regex", "(a")))
    assert not llm.engine.busy and not llm.engine.requests


@pytest.mark.parametrize("overlap", [False, True])
def test_in_a_batch_and_preempted(llm, overlap):
    """A pool of a few pages: the later requests are preempted, and their grammars are where they were."""
    jobs = [
        params(GrammarSpec("regex", "[a-z]{150}"), temperature=1.0, seed=1),
        SamplingParams(max_tokens=150, temperature=1.0, seed=2),
        params(GrammarSpec("regex", "[0-9]{150}"), temperature=1.0, seed=3),
    ]
    alone = [llm.generate("Hello", job)[0].token_ids for job in jobs]
    small = llm.with_cache(kv_cache_memory="320tok", enable_prefix_caching=False)
    small.engine.overlap = overlap
    together = small.generate(["Hello"] * 3, jobs)
    assert small.engine.scheduler.preemptions > 0
    assert [output.token_ids for output in together] == alone
    assert re.fullmatch("[a-z]{150}", together[0].text) and re.fullmatch("[0-9]{150}", together[2].text)


def test_limits_end_one_request_and_no_other(llm):
    """Its automaton grows with every letter until its share is used up."""
    hungry = GrammarSpec("regex", "(a{1,1000}){1,1000}")
    evil = params(hungry, temperature=5.0, seed=1, max_tokens=1500, logit_bias={EOS: -100.0})
    evil_output, output = llm.generate(["Hello", "Hello"], [evil, params(DIGITS)])
    assert evil_output.finish_reason == "error"
    assert re.fullmatch("[0-9]{3,6}", output.text)


def test_nothing_is_allowed(llm):
    """The only letter that may come is also one that may not come yet."""
    [letter] = llm.tokenizer.encode("a")
    for temperature in (0.0, 1.0):
        job = params(GrammarSpec("regex", "a{9}"), stop_token_ids=[letter], min_tokens=5, temperature=temperature,
                     logprobs=2)  # fmt: skip
        [output] = llm.generate("Hello", job)
        assert (output.finish_reason, output.token_ids) == ("error", [])
    assert llm.engine.pages.held == 0


def test_compiled_elsewhere(llm):
    grammar = llm.engine.grammars.compile(DIGITS)
    for number in range(2):
        llm.engine.add(f"copy-{number}", [5, 6, 7], params(DIGITS), grammar=grammar.copy())
    requests = list(llm.engine.requests.values())
    while llm.engine.busy:
        llm.engine.step()
    assert all(re.fullmatch("[0-9]{3,6}", request.text.text) for request in requests)


def test_a_model_without_a_tokenizer(tiny):
    with pytest.raises(RequestError, match="needs a tokenizer"):
        tiny.generate([[5, 6]], params(DIGITS))
