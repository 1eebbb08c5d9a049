"""Parsers of tool calls: what they find in whole texts, and that no way of cutting the text changes it."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.base.errors import UnknownChoice
from octavo.serve.tools import FORMATS, CallStart, Content, Parsed, ToolCall, format_of_template, parse
from octavo.serve.tools.deltas import joined

F = ToolCall("f", '{"a": 1}')
HERMES_F = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
LLAMA_F = '{"name": "f", "parameters": {"a": 1}}'


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("Hello.", "Hello.", []),
        ("", "", []),
        (" \n", " \n", []),
        (HERMES_F, "", [F]),
        (f"Let me see.\n\n{HERMES_F}\n", "Let me see.", [F]),
        (f"{HERMES_F}\n{HERMES_F}", "", [F, F]),
        (f"{HERMES_F}\nand then {HERMES_F} done", "\nand then done", [F, F]),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}', "", [F]),  # the end cut off
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [F]),  # arguments as a text
        ('<tool_call>{"name": "f"}</tool_call>', "", [ToolCall("f", "{}")]),
        ('<tool_call>{"arguments": {"s": "</tool_call>}{\\""}, "name": "é"}</tool_call>', "",
         [ToolCall("é", '{"s": "</tool_call>}{\\""}')]),
        ('<tool_call>{"name": "f", "arguments": {"s": "\\ud800"}}', "", [ToolCall("f", '{"s": "\\ud800"}')]),
        # not calls: nothing is lost
        ("a <tool_call>b", "a <tool_call>b", []),
        ("1 < 2 <tool_cal", "1 < 2 <tool_cal", []),
        ("<tool_call>", "<tool_call>", []),
        ("<tool_call>{oops}</tool_call>!", "<tool_call>{oops}</tool_call>!", []),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}', '<tool_call>{"name": "f", "arguments": {"a": 1}', []),
        ('<tool_call>{"name": "f", "arguments": [1]}', '<tool_call>{"name": "f", "arguments": [1]}', []),
        ('<tool_call>{"name": "f", "arguments": {"x": NaN}}', '<tool_call>{"name": "f", "arguments": {"x": NaN}}', []),
        (f"<tool_call>{{oops}}</tool_call>{HERMES_F}", "<tool_call>{oops}</tool_call>", [F]),
        (LLAMA_F, LLAMA_F, []),
    ],
)  # fmt: skip
def test_hermes(text, content, calls):
    assert parse("hermes", text) == Parsed(content, tuple(calls))


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("Hello; {you}", "Hello; {you}", []),
        (LLAMA_F, "", [F]),
        (f"\n{LLAMA_F}\n", "", [F]),
        (f"<|python_tag|>{LLAMA_F}", "", [F]),
        (f"So: <|python_tag|>{LLAMA_F}; {LLAMA_F};{LLAMA_F}", "So:", [F, F, F]),
        (f"{LLAMA_F}; {{1}}", "; {1}", [F]),
        (f"{LLAMA_F};", ";", [F]),
        ('{"answer": 5}', '{"answer": 5}', []),
        ('{"name": "f", "parameters": {"a"', '{"name": "f", "parameters": {"a"', []),
        (f"Like {LLAMA_F}", f"Like {LLAMA_F}", []),
        ("<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
        ('{"name": "", "parameters": {}}', '{"name": "", "parameters": {}}', []),
    ],
)
def test_llama(text, content, calls):
    assert parse("llama3_json", text) == Parsed(content, tuple(calls))


def test_no_parser_finds_nothing():
    assert parse("none", HERMES_F) == Parsed(HERMES_F, ())
    with pytest.raises(UnknownChoice, match="hermes"):
        parse("hermez", "")


PIECES = st.sampled_from([
    HERMES_F, LLAMA_F, "<tool_call>", "</tool_call>", "<tool", "_call>", "<|python_tag|>", "<|py", ";", "; ", " ", "\n",
    "{", "}", '{"name": "g", ', '"arguments": ', '{"s": "}"}', '"', "\\", "é", "\U0001f600", "text", "<", "[", "]",
])  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("name", FORMATS)
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_every_cut_gives_the_same(name, data):
    text = "".join(data.draw(st.lists(PIECES, max_size=12)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=len(text) + 1)))
    stream, deltas = FORMATS[name].stream(), []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        deltas += stream.feed(text[begin:end])
    deltas += stream.close()
    assert joined(deltas) == parse(name, text)
    assert [delta.index for delta in deltas if isinstance(delta, CallStart)] == list(
        range(len(parse(name, text).calls))
    )
    if not parse(name, text).calls:
        assert parse(name, text).content == text


@pytest.mark.parametrize("name", ["hermes", "llama3_json"])
@settings(deadline=None, max_examples=100)
@given(arguments=st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=3), min_size=1, max_size=3))
def test_what_is_written_is_found(name, arguments):
    layout = FORMATS[name]
    text = layout.separator.join(
        f'{layout.opening}{{"name": "f", "{layout.arguments_key}": {json.dumps(one)}}}{layout.closing}'
        for one in arguments
    )
    stream, deltas = layout.stream(), []
    for letter in text:
        deltas += stream.feed(letter)
    found = joined([*deltas, *stream.close()])
    assert found.content == ""
    assert [json.loads(call.arguments) for call in found.calls] == arguments


def test_text_is_not_held_back():
    stream = FORMATS["hermes"].stream()
    assert stream.feed("a < b") == [Content("a < b")]
    assert stream.feed(" <tool") == []
    assert stream.feed("s>") == [Content(" <tools>")]


HOSTILE = [
    "<tool_call>{" * 20_000, " " * 100_000 + "<", "<" * 100_000, '<tool_call>{"a' * 9000, "<tool_call>{}" * 9000,
    "<tool_call>" * 9000, "[" * 100_000 + "]" * 100_000,
    '<tool_call>{"name": "f", "arguments": {"a": ' + "[" * 50_000 + "]" * 50_000 + "}}",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_are_quick(text):
    begin = time.perf_counter()
    assert parse("hermes", text).content == text
    parse("llama3_json", "{" + text)
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (None, "none"),
        ("{{ messages }}", "none"),
        ("... within <tool_call></tool_call> XML tags ...", "hermes"),
        ("{{- '<|python_tag|>' }}", "llama3_json"),
        ("{'name': function name, 'parameters': ...} Environment: ipython", "llama3_json"),
    ],
)
def test_format_of_a_template(template, name):
    assert format_of_template(template) == name
