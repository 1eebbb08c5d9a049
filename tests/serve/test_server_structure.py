"""JSON schemas, regular expressions and tools, through the official client and a real server."""

import json
import re

import openai
import pytest
from real_server import Server

CITY = {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
    "required": ["city", "people"], "additionalProperties": False,
}  # fmt: skip
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}},
                       "required": ["city"], "additionalProperties": False},
    },
}  # fmt: skip
ASKED = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_a_json_schema_is_obeyed(client: openai.OpenAI):
    answer = client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": "A city and how many live there, as JSON."}], seed=1,
        max_tokens=80, response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}},
    ).choices[0]  # fmt: skip
    found = json.loads(answer.message.content)
    assert answer.finish_reason == "stop" and set(found) == {"city", "people"} and isinstance(found["people"], int)


def test_a_regex_and_a_choice(client: openai.OpenAI):
    def complete(**structured) -> str:
        return client.completions.create(
            model="smollm2", prompt="My number is", max_tokens=20, seed=2, extra_body={"structured_outputs": structured}
        ).choices[0].text  # fmt: skip

    assert re.fullmatch(r"[0-9]{3}-[0-9]{4}", complete(regex=r"[0-9]{3}-[0-9]{4}"))
    assert complete(choice=["left", "right"]) in ("left", "right")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_call_can_be_forced(client: openai.OpenAI, choice):
    given = {"model": "smollm2", "messages": ASKED, "tools": [WEATHER], "tool_choice": choice, "max_tokens": 60,
             "temperature": 0, "parallel_tool_calls": False}  # fmt: skip
    answer = client.chat.completions.create(**given).choices[0]
    (call,) = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls" and call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**given, stream=True)]
    parts = [part.function for chunk in chunks for part in chunk.delta.tool_calls or []]
    assert parts[0].name == "get_weather" and chunks[-1].finish_reason == "tool_calls"
    assert "".join(part.arguments or "" for part in parts) == call.function.arguments


def test_results_of_tools_come_back(client: openai.OpenAI):
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        *ASKED, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny, 21 degrees"},
    ]  # fmt: skip
    answer = client.chat.completions.create(model="smollm2", messages=messages, tools=[WEATHER], max_tokens=30)
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


@pytest.mark.parametrize(
    "given",
    [
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}}},
        {"response_format": {"type": "regex", "regex": "(a"}},
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        {"structured_outputs": {"choice": []}},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}},
    ],
)
def test_what_is_no_grammar_is_refused(server: Server, given: dict):
    status, reply = server.post("/v1/chat/completions", {"messages": ASKED, "max_tokens": 5, **given})
    assert status == 400 and reply["error"]["message"], reply
