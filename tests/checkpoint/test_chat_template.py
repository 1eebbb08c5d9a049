"""Chat templates: the helpers that published ones use, the sandbox, and clear refusals."""

import pytest

from octavo.base.errors import CheckpointError, RequestError
from octavo.checkpoint.chat_template import render_chat
from octavo.checkpoint.tokenizer import Tokenizer, merge_ids

USER = [{"role": "user", "content": "hi"}]


class Letters:
    """A backend of one id per character."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [1] * add_special_tokens + [ord(c) for c in text]

    def decode(self, ids, skip_special_tokens: bool) -> str:
        return "".join(map(chr, ids))

    def vocab_size(self) -> int:
        return 128

    def token_id(self, token: str) -> int | None:
        return None


def test_same_text_as_transformers():
    from transformers.utils.chat_template_utils import render_jinja_template

    template = """{% for m in messages %}
    {% if m['role'] == 'system' %}{% continue %}{% endif %}
<|{{ m['role'] }}|>{{ m['content'] | trim }}{% generation %}x{% endgeneration %}

    {% endfor %}
{{ tools | tojson(indent=2) }}{{ {'a': 'é<b>'} | tojson }}
{% if add_generation_prompt %}<|assistant|>{% endif %}"""
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": " hi "}]
    (want,), _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, tools=None)
    assert render_chat(template, messages, {"add_generation_prompt": True}) == want


def test_helpers():
    assert len(render_chat("{{ strftime_now('%Y') }}", USER, {})) == 4
    assert render_chat("{{ tools is none }} {{ enable_thinking }}", USER, {"enable_thinking": False}) == "True False"


def test_refusals_are_request_errors():
    with pytest.raises(RequestError, match="roles must alternate"):
        render_chat("{{ raise_exception('roles must alternate') }}", USER, {})
    for template in ("{{ messages[0].content + 1 }}", "{{ missing.field }}", "{{ 1 // 0 }}"):
        with pytest.raises(RequestError, match="refused"):
            render_chat(template, USER, {})
    for messages in ([], ["hi"], [{"content": "hi"}], [{"role": 1}]):
        with pytest.raises(RequestError, match="list of messages"):
            render_chat("x", messages, {})


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ range(10**9) | list }}",
    ],
)
def test_sandbox(template):
    with pytest.raises(RequestError):
        render_chat(template, USER, {})


def test_bad_template_is_the_checkpoints_fault():
    with pytest.raises(CheckpointError, match="not valid Jinja"):
        render_chat("{% if %}", USER, {})


def test_tokenizer_around_a_backend():
    plain = Tokenizer(Letters())
    assert not plain.has_chat_template
    with pytest.raises(RequestError, match="no chat template"):
        plain.chat(USER)
    chatty = plain.with_chat_template("<{{ messages[0].content }}{{ '>' if add_generation_prompt }}")
    assert chatty.chat(USER) == [ord(c) for c in "<hi>"]
    assert chatty.chat(USER, add_generation_prompt=False) == [ord(c) for c in "<hi"]
    assert chatty.encode("a") == [1, 97]
    with pytest.raises(RequestError, match="surrogate"):
        chatty.encode("\ud800")


def test_merge_ids():
    assert merge_ids([None, 3], (1, 3), [2, None]) == (3, 1, 2)
