"""Grammars that force a call: what they let through is a call that the parser of the same format finds."""

import json

import pytest
import torch

from octavo.base.errors import RequestError
from octavo.checkpoint.bpe import BPEBackend
from octavo.checkpoint.tokenizer import Tokenizer
from octavo.engine.grammar import GrammarFactory
from octavo.serve.tools import FORMATS, ToolCall, grammar_for_tools, parse

TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": {
        "$defs": {"number": {"type": "integer"}},
        "properties": {"a": {"$ref": "#/$defs/number"}, "b": {"type": "integer", "x-unknown": 1}},
        "required": ["a", "b"], "additionalProperties": False}}},
    {"type": "function", "function": {"name": 'say "é"', "parameters": {"properties": {"text": {"type": "string"}}}}},
    {"type": "function", "function": {"name": "now"}},
]  # fmt: skip
ADD = {"type": "function", "function": {"name": "add"}}
EOS = 2


@pytest.fixture(scope="module")
def factory() -> GrammarFactory:
    """256 bytes after three special ids."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers

    letters = {letter: 3 + at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Inner(models.BPE({"<unk>": 0, "<s>": 1, "</s>": 2} | letters, [], unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    return GrammarFactory(Tokenizer(BPEBackend(inner), eos_token_ids=(EOS,)), 259, (EOS,))


def takes(factory: GrammarFactory, spec, text: str) -> bool:
    grammar = factory.compile(spec)
    for token in [*factory.tokenizer.encode(text), EOS]:
        row = torch.zeros(259)
        grammar.mask(row)
        if row[token] != 0 or not grammar.accept(token):
            return False
    return True


def written(name: str, *calls: tuple[str, dict]) -> str:
    layout = FORMATS[name]
    return layout.separator.join(
        f"{layout.opening}{json.dumps({'name': call, layout.arguments_key: given}, ensure_ascii=False)}{layout.closing}"
        for call, given in calls
    )


@pytest.mark.parametrize("name", ["hermes", "llama3_json"])
def test_required(factory, name):
    one, many = (grammar_for_tools(TOOLS, "required", parallel, name) for parallel in (False, True))
    calls = [("add", {"a": 1, "b": -2}), ('say "é"', {"text": "}é\n"}), ("now", {})]
    for call in calls:
        assert takes(factory, one, written(name, call))
    text = written(name, *calls)
    assert takes(factory, many, text) and not takes(factory, one, text)
    assert parse(name, text).calls == tuple(
        ToolCall(call, json.dumps(given, ensure_ascii=False)) for call, given in calls
    )
    for bad in (
        "Hello.",
        "",
        written(name, ("add", {"a": 1})),
        written(name, ("sub", {})),
        written(name, ("now", {"x": 1})),
    ):
        assert not takes(factory, many, bad)


@pytest.mark.parametrize("name", ["hermes", "llama3_json"])
def test_a_named_function(factory, name):
    spec = grammar_for_tools(TOOLS, ADD, True, name)
    assert takes(factory, spec, written(name, ("add", {"a": 1, "b": 2})))
    assert not takes(factory, spec, written(name, ("now", {})))
    assert not takes(factory, spec, written(name, ("add", {"a": 1, "b": 2}), ("add", {"a": 1, "b": 2})))


def test_nothing_is_forced():
    assert [grammar_for_tools(TOOLS, choice, True, "hermes") for choice in ("auto", "none", None)] == [None] * 3


def test_strict_obeys_every_keyword(factory):
    parameters = {"properties": {"a": {"type": "array", "uniqueItems": True}}}
    for strict in (None, False, True):
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters, "strict": strict}}
        spec = grammar_for_tools([tool], "required", True, "hermes")
        if strict:
            with pytest.raises(RequestError, match="uniqueItems"):
                factory.compile(spec)
        else:
            assert takes(factory, spec, written("hermes", ("f", {"a": [1, 1]})))


@pytest.mark.parametrize(
    ("tools", "choice", "name", "words"),
    [
        (TOOLS, {"type": "function", "function": {"name": "sub"}}, "hermes", "sub"),
        (TOOLS, {"type": "function"}, "hermes", "tool_choice"),
        ([], "required", "hermes", "tools are"),
        (TOOLS, "required", "none", "not known"),
        ([{"function": {"name": "f", "parameters": {"a": [[]] * 2000}}}], "required", "hermes", "entries"),
    ],
)
def test_what_cannot_be(tools, choice, name, words):
    with pytest.raises(RequestError, match=words):
        grammar_for_tools(tools, choice, True, name)
