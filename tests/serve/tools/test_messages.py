"""Messages made plain for templates."""

import pytest

from octavo.base.errors import RequestError
from octavo.checkpoint.chat_template import render_chat
from octavo.serve.tools import prepare_messages

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, "é"]}'}}
CHAT = [
    {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "42"},
    {"role": "assistant", "content": "It is 42.", "tool_calls": None},
]


def test_plain():
    before = repr(CHAT)
    plain = prepare_messages(CHAT)
    assert [m["content"] for m in plain] == ["Be brief.", "Hi", "", "42", "It is 42."]
    assert plain[0]["role"] == "system"
    assert plain[2]["tool_calls"][0] == {**CALL, "function": {"name": "f", "arguments": {"a": [1, "é"]}}}
    assert "tool_calls" not in plain[4]
    assert repr(CHAT) == before


def test_a_template_writes_the_arguments_once():
    template = (
        "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}"
        "{{ c.function.arguments | tojson }}{% endfor %}{% else %}{{ m.content }}|{% endif %}{% endfor %}"
    )
    assert render_chat(template, prepare_messages(CHAT), {}) == 'Be brief.|Hi|{"a": [1, "é"]}42|It is 42.|'


@pytest.mark.parametrize("arguments", ["", "{}", None, {}, " "])
def test_no_arguments(arguments):
    call = {"function": {"name": "f", "arguments": arguments}}
    [message] = prepare_messages([{"role": "assistant", "tool_calls": [call]}])
    assert message["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, r"messages\[0\].*image_url"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "input_audio"),
        ({"role": "user", "content": [{"type": "text"}]}, "text"),
        ({"role": "user", "content": [{"type": ["text"]}]}, "parts"),
        ({"role": "user", "content": [7]}, "parts"),
        ({"role": "user", "content": 7}, "int"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "not JSON"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}, "not an object"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 10**5}}]}, "not JSON"),
        ({"role": "assistant", "tool_calls": ["f"]}, "no function"),
        ("Hi", "not an object"),
    ],
)
def test_what_cannot_be(message, words):
    with pytest.raises(RequestError, match=words):
        prepare_messages([message])
