"""Whatever is sent: a 2xx, or a 4xx with the error object; never a 5xx, and nothing that the engine would refuse."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import FakeLink, fake_app
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

pytestmark = pytest.mark.filterwarnings("ignore")

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
_SETTINGS: Any = {"deadline": None, "phases": [Phase.generate], "suppress_health_check": list(HealthCheck)}
MESSAGES = [{"role": "user", "content": "a"}]


@pytest.fixture(scope="module")
def front() -> Iterator[tuple[TestClient, FakeLink]]:
    app, _, link = fake_app()
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client, link


def check(client: TestClient, link: FakeLink, path: str, body: bytes, headers: dict[str, Any] | None = None) -> int:
    begin = time.monotonic()
    reply = client.post(path, content=body, headers={"Content-Type": "application/json", **(headers or {})})
    assert time.monotonic() - begin < 5, body[:200]
    assert reply.status_code < 500, (reply.status_code, reply.text[:500], body[:500])
    if reply.status_code >= 400:
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "code", "param"} and error["message"]
    assert not link.refused, link.refused
    return reply.status_code


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()


DEEP = 100_000
SCHEMA_IN = {"type": "json_schema", "json_schema": {"name": "a", "schema": None}}
HOSTILE: list[tuple[str, bytes]] = [
    *((path, body) for path in (CHAT, TEXT, "/tokenize", "/detokenize") for body in (
        b"", b"{", b"null", b"[]", b"1", b'"a"', b"[" * DEEP, b'{"a":' * DEEP, b"\xff\xfe", b"\x00", b"{}" * 2,
        b'{"prompt": NaN}', b'{"messages": Infinity}', b'{"prompt": "a", "prompt": "b"}',
    )),
    *((TEXT, b'{"prompt": "a", "%s": %s}' % (name, value)) for name in (
        b"n", b"max_tokens", b"min_tokens", b"logprobs", b"temperature", b"top_p", b"top_k", b"min_p", b"seed",
        b"presence_penalty", b"frequency_penalty", b"repetition_penalty", b"best_of", b"stop", b"stop_token_ids",
        b"logit_bias", b"echo", b"stream", b"stream_options", b"response_format", b"structured_outputs", b"suffix",
        b"cache_salt", b"user", b"model",
    ) for value in (
        b"-1", b"1.5", b"1e400", b"NaN", b"-Infinity", b"9223372036854775808", b"1" * 400, b'"1"', b'""', b"[]",
        b"[null]", b'["", "a"]', b"{}", b'{"a": 1}', b'{"-1": 5}', b'{"999999999": 1}', b"true", b'"\\ud800"',
        b'"\\u0000"', b"[-1]", b"[9999999999]", b"[[]]", b"null",
    )),
    *((TEXT, dump({"prompt": prompt})) for prompt in (
        [], [[]], [""], [1, "a"], [[1], "a"], [-1], [49152], [2**63], [1.5], [True], ["a"] * 2000, [1] * 10**6, "",
        "\ud800", "\x00", "a" * 10**6, {"a": 1}, None,
    )),
    (TEXT, dump({"prompt": "a", "stop": ["x"] * 33})), (TEXT, dump({"prompt": "a", "stop": "x" * 10_000})),
    (TEXT, dump({"prompt": "a", "logit_bias": {str(n): 1 for n in range(5000)}})),
    *(("/tokenize", dump({"messages": messages})) for messages in ([{}], [{"a": 1}], [{"role": 1}], [{"role": "x"}])),
    (TEXT, dump({"prompt": ["a"] * 1000, "n": 128})), (TEXT, dump({"prompt": "a", "max_tokens": 0})),
    *((CHAT, dump({"messages": messages})) for messages in (
        [], [{}], [None], ["a"], [{"role": 1, "content": "a"}], [{"role": "", "content": "a"}],
        [{"role": "user", "content": 5}], [{"role": "user", "content": [{}]}], [{"role": "wizard", "content": "a"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://localhost/"}}]}],
        [{"role": "assistant", "tool_calls": [{}]}], [{"role": "user", "content": "\ud800"}],
        [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}],
        [{"role": "user", "content": "a", "x": 2**70}], [{"role": "user", "content": "a", "x": 1e308}],
        [{"role": "user", "content": "a" * 10**6}], MESSAGES * 5000, [{"role": "user", "content": {"a": 1}}],
    )),
    *((CHAT, dump({"messages": MESSAGES, **more})) for more in (
        {"tools": [{}]}, {"tools": [{"type": "function", "function": {"name": "a b"}}]}, {"tools": "a"},
        {"tools": [{"function": {"name": "a", "parameters": {"type": 5}}}], "tool_choice": "required"},
        {"tool_choice": "required"}, {"tool_choice": {"type": "function", "function": {"name": "x"}}},
        {"logprobs": True, "top_logprobs": 65}, {"top_logprobs": 5}, {"max_completion_tokens": 0},
        {"chat_template_kwargs": {"messages": [], "tools": 1, "add_generation_prompt": "x"}},
        {"chat_template_kwargs": {"bos_token": {"a": 1}}}, {"chat_template_kwargs": {str(n): n for n in range(100)}},
        {"functions": [{}]}, {"modalities": ["audio"]}, {"audio": {"voice": "a"}}, {"continue_final_message": True},
        {"response_format": {"type": "regex", "regex": "(a{1,1000}){1,1000}"}},
        {"response_format": {"type": "regex", "regex": "(" * 5000}}, {"response_format": {"type": "xml"}},
        {"response_format": SCHEMA_IN}, {"response_format": {**SCHEMA_IN, "json_schema": {"schema": {"$ref": "#"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": list(range(20_000))}}}},
        {"structured_outputs": {"json": "{" * 1000}}, {"structured_outputs": {"grammar": "start: start"}},
        {"structured_outputs": {"choice": [1, None]}}, {"structured_outputs": {"regex": None}},
    )),
]  # fmt: skip


def test_hostile_bodies(front: tuple[TestClient, FakeLink]):
    statuses = [check(*front, path, body) for path, body in HOSTILE]
    assert len(HOSTILE) > 600 and sum(status >= 400 for status in statuses) > 450
    assert front[0].post(TEXT, json={"prompt": "a"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}, {"Accept": "text/html"},
     {"X-Request-Id": "a" * 9000}, {"X-Request-Id": b"\xff\xfe"}, {"Authorization": "Basic !!!"},
     {"Authorization": b"\xff"}, {"Content-Length": "-5"}, {"Content-Type": "application/json; charset=utf-16"},
     {"Expect": "100-continue"}],
)  # fmt: skip
def test_hostile_headers(front: tuple[TestClient, FakeLink], headers: dict[str, Any]):
    check(*front, TEXT, b'{"prompt": "a"}', headers)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD"])
@pytest.mark.parametrize(
    "path", [TEXT, "/", "/static/../app.py", "/static/%2e%2e/app.py", "/v1/models/a%00b", "/nowhere"]
)
def test_other_methods_and_paths(front: tuple[TestClient, FakeLink], method: str, path: str):
    assert front[0].request(method, path).status_code in (200, 404, 405)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_any_value_in_any_field(front: tuple[TestClient, FakeLink], path: str):
    schema = front[0].get("/openapi.json").json()["components"]["schemas"]
    fields = sorted(schema["ChatRequest" if path == CHAT else "CompletionRequest"]["properties"])
    base = {"messages": MESSAGES} if path == CHAT else {"prompt": "a"}
    assert len(fields) > 25

    @settings(max_examples=150, **_SETTINGS)
    @given(st.dictionaries(st.sampled_from(fields), ANY, min_size=1, max_size=3))
    def tried(given_fields: dict[str, Any]) -> None:
        check(*front, path, json.dumps({**base, **given_fields}).encode("utf-8", "surrogatepass"))

    tried()


def schema_cases(front: tuple[TestClient, FakeLink], examples: int) -> int:
    """Cases that schemathesis makes of the OpenAPI document, right and wrong ones; how many there were."""
    import schemathesis
    from schemathesis.generation import GenerationMode

    app = front[0].app
    document = schemathesis.openapi.from_dict(front[0].get("/openapi.json").json())
    document.app = app
    count = 0
    for result in document.get_all_operations():
        operation = result.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            if mode is GenerationMode.NEGATIVE and operation.method.upper() == "GET":
                continue

            @settings(
                max_examples=examples, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def tried(case: Any) -> None:
                nonlocal count
                count += 1
                body = case.body if isinstance(case.body, bytes) else json.dumps(case.body, default=str).encode(
                    "utf-8", "surrogatepass")  # fmt: skip
                if case.method.upper() == "POST":
                    check(*front, case.formatted_path, body)
                else:
                    assert front[0].get(case.formatted_path).status_code < 500

            tried()
    return count


def test_cases_of_the_openapi_document(front: tuple[TestClient, FakeLink]):
    assert schema_cases(front, 15) > 80


@pytest.mark.slow
def test_thousands_of_cases_of_the_openapi_document(front: tuple[TestClient, FakeLink]):
    count = schema_cases(front, 1000)
    print(f"{count} cases")
    assert count > 4000
