"""`octavo serve` as clients see it, on the packaged model: the official openai client, and plain HTTP."""

import http.client
import json
import threading
import time

import openai
import pytest
from real_server import Server

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, **given):
    return client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Name a colour."}],
        temperature=0,
        extra_body={"ignore_eos": True},
        **given,
    )


def test_models_tell_the_cache(client: openai.OpenAI):
    (model,) = client.models.list().data
    cache = model.model_extra["kv_cache"]
    assert model.id == "smollm2" and cache["dtype"] == "int8" and cache["self_test"]["status"]
    assert cache["bytes_per_token"] < 0.6 * cache["bytes_per_token_bf16"]
    assert cache["capacity_tokens"] > 1.8 * cache["capacity_tokens_bf16"]
    assert client.models.retrieve("smollm2").id == "smollm2"


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI):
    whole = ask(client, max_tokens=24)
    chunks = list(ask(client, max_tokens=24, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content and len(text) > 10
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]
    usage = chunks[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, 24)


def test_seeds_and_choices(client: openai.OpenAI):
    def draw(seed: int, n: int) -> list[str]:
        reply = client.completions.create(model="smollm2", prompt=PROMPT, max_tokens=8, seed=seed, n=n, temperature=1.0)
        assert [choice.index for choice in reply.choices] == list(range(n))
        return [choice.text for choice in reply.choices]

    first = draw(7, 3)
    assert first == draw(7, 3) and len(set(first)) == 3
    assert draw(8, 1) == [first[1]], "choice i of a seed is that of seed + i"


def test_logprobs_of_a_chat(client: openai.OpenAI):
    content = ask(client, max_tokens=4, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(content) == 4
    for one in content:
        assert len(one.top_logprobs) == 3 and one.logprob == one.top_logprobs[0].logprob <= 0
        assert bytes(one.bytes).decode() == one.token


def test_echo_scores_the_prompt(client: openai.OpenAI, server: Server):
    tokens = server.post("/tokenize", {"prompt": PROMPT})[1]["tokens"]
    reply = client.completions.create(
        model="smollm2", prompt=[tokens, tokens[:3]], max_tokens=1, echo=True, logprobs=1, temperature=0
    )
    first, second = (choice.logprobs for choice in reply.choices)
    assert "".join(first.tokens[: len(tokens)]) == PROMPT and len(first.tokens) == len(tokens) + 1
    assert first.token_logprobs[0] is None and all(value <= 0 for value in first.token_logprobs[1:])
    assert first.token_logprobs[1:3] == pytest.approx(second.token_logprobs[1:3], abs=0.05)
    alone = client.completions.create(model="smollm2", prompt=tokens, max_tokens=0, echo=True, logprobs=1)
    assert alone.choices[0].text == PROMPT and alone.usage.completion_tokens == 0
    assert first.text_offset[1] == len(first.tokens[0])


def test_a_second_turn_finds_the_first_in_the_cache(client: openai.OpenAI):
    story = [{"role": "user", "content": "Tell me about the sea. " * 30}]
    kept = {"model": "smollm2", "messages": story, "max_tokens": 2}
    client.chat.completions.create(**kept)
    cached = client.chat.completions.create(**kept).usage.prompt_tokens_details.cached_tokens
    salted = client.chat.completions.create(**kept, extra_body={"cache_salt": "another tenant"})
    assert cached >= 128 and cached % 64 == 0
    assert salted.usage.prompt_tokens_details.cached_tokens == 0


def test_stop_strings_and_biases(client: openai.OpenAI):
    plain = client.completions.create(model="smollm2", prompt="1 2 3 4", max_tokens=12, temperature=0).choices[0].text
    stop = plain.strip()[2]
    cut = client.completions.create(model="smollm2", prompt="1 2 3 4", max_tokens=12, temperature=0, stop=[stop])
    assert cut.choices[0].text == plain[: plain.index(stop)] and cut.choices[0].finish_reason == "stop"
    banned = client.completions.create(
        model="smollm2", prompt="1 2 3 4", max_tokens=1, temperature=0, logprobs=1, logit_bias={"30": 100}
    )
    assert banned.choices[0].logprobs.tokens == [server_piece(client, 30)]


def server_piece(client: openai.OpenAI, token: int) -> str:
    return client.post("../detokenize", body={"tokens": [token]}, cast_to=object)["prompt"]


def test_unknown_fields_are_named(server: Server):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    body = json.dumps({"prompt": "a", "max_tokens": 1, "no_such": 1, "other": 2})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json", "X-Request-Id": "mine"})
    reply = connection.getresponse()
    assert reply.status == 200 and reply.headers["X-Octavo-Ignored"] == "no_such,other"
    assert reply.headers["X-Request-Id"] == "mine"
    connection.close()


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/completions", {"prompt": "a", "n": 1000}, 400, "n"),
        ("/v1/completions", {"prompt": ""}, 400, "prompt"),
        ("/v1/completions", {"prompt": [10**6]}, 400, "prompt"),
        ("/v1/completions", {"prompt": [5] * 9000}, 400, "prompt"),
        ("/v1/completions", {"prompt": "a", "temperature": -1}, 400, "temperature"),
        ("/v1/completions", {"prompt": "a", "model": "gpt-4"}, 404, "model"),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, 400, None),
        ("/v1/chat/completions", {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, None),
        ("/v1/chat/completions", b"{", 400, None),
        ("/nowhere", {}, 404, None),
    ],
)
def test_wrong_input_is_refused_by_name(server: Server, path: str, body, status: int, param: str | None):
    got, reply = server.post(path, body)
    assert got == status and reply["error"]["message"] and (param is None or reply["error"]["param"] == param), reply


def test_who_leaves_frees_the_pages(server: Server):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 2000, "stream": True, "ignore_eos": True})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    assert reply.read(40).startswith(b"data: ")
    assert server.until(lambda live: live["running"] == 1)["pages"]["held"] > 0
    reply.close()
    connection.close()
    state = server.until(lambda live: live["running"] == 0)
    assert state["pages"]["held"] == 0 and state["sequences"] == []


def test_answers_do_not_depend_on_company(client: openai.OpenAI):
    def draw(number: int) -> str:
        prompt = f"Number {number} is"
        reply = client.completions.create(model="smollm2", prompt=prompt, max_tokens=12, seed=number, temperature=0.8)
        return reply.choices[0].text

    alone = [draw(number) for number in range(8)]
    together: dict[int, str] = {}
    threads = [threading.Thread(target=lambda n=n: together.update({n: draw(n)})) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[n] for n in range(8)] == alone and len(set(alone)) == 8


def test_metrics_count_what_was_served(server: Server):
    before = server.get("/metrics")[1].decode()
    server.post("/v1/completions", {"prompt": "a b c", "max_tokens": 5, "ignore_eos": True})
    after = server.get("/metrics")[1].decode()

    def total(text: str) -> float:
        return sum(float(x.split()[-1]) for x in text.splitlines() if x.startswith("octavo:generation_tokens_total{"))

    assert total(after) - total(before) == 5


def test_a_dead_engine_is_told_and_replaced(server: Server):
    import os
    import signal

    found: list[object] = []

    def stream() -> None:
        status, reply = server.post("/v1/completions", {"prompt": "a", "max_tokens": 4000, "ignore_eos": True})
        found.append((status, reply["error"]["code"], time.monotonic()))

    thread = threading.Thread(target=stream)
    thread.start()
    server.until(lambda live: live["running"] == 1)
    (child,) = [pid for pid in _children(server.process.pid) if "engine_process" in _command(pid)]
    begin = time.monotonic()
    os.kill(child, signal.SIGKILL)
    thread.join(5)
    status, code, when = found[0]  # type: ignore[misc]
    assert (status, code) == (503, "engine_unavailable") and when - begin < 2
    assert server.get("/health")[0] == 503
    server.until(lambda live: live["state"] == "ready", 60)
    assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def _command(pid: int) -> str:
    with open(f"/proc/{pid}/cmdline") as file:
        return file.read()
