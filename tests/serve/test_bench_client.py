"""The HTTP client below the benchmark and the chat: answers in pieces, connections that go, servers that do not."""

import asyncio
import contextlib
import json
import socket
import threading

import pytest

from octavo.serve.bench.listen import Sample
from octavo.serve.client import Client, Reply, Unreachable, error_text
from tests.serve.fake_server import Fake, serving

BODY = json.dumps({"model": "toy", "prompt": "x", "max_tokens": 3, "stream_options": {"include_usage": True}}).encode()


def posted(url: str, times: int = 1, **options) -> tuple[list[Reply], list[bytes]]:
    events: list[bytes] = []

    async def ask() -> list[Reply]:
        client = Client(url, **options)
        try:
            return [
                await client.post("/v1/completions", BODY, lambda data, at: events.append(data)) for _ in range(times)
            ]
        finally:
            await client.close()

    return asyncio.run(ask()), events


@pytest.mark.parametrize(("framing", "connections"), [("chunked", 1), ("close", 3)])
def test_events_come_whole_and_connections_are_kept_where_they_may_be(framing, connections):
    fake = Fake(framing=framing)
    with serving(fake) as url:
        replies, events = posted(url, times=3, api_key="secret")
    assert [reply.status for reply in replies] == [200] * 3 and fake.connections == connections
    assert len(events) == 3 * 6 and events[5] == b"[DONE]"
    assert json.loads(events[0])["choices"][0]["text"] == " w0"
    assert {headers["authorization"] for headers in fake.headers} == {"Bearer secret"}


def raw_server(answer: bytes):
    """A server that sends these bytes one by one to the first who comes, and closes; and its thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def run() -> None:
        with listener, listener.accept()[0] as connection, contextlib.suppress(OSError):  # the client may go first
            connection.recv(65536)
            for byte in range(len(answer)):
                connection.sendall(answer[byte : byte + 1])

    thread = threading.Thread(target=run)
    thread.start()
    return url, thread


def test_an_answer_byte_by_byte():
    data = b'data:{"a": 1}\r\n\r\n: a comment\n\ndata: [DONE]\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    url, thread = raw_server(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))
    _, events = posted(url)
    thread.join()
    assert events == [b'{"a": 1}', b"[DONE]"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "connection was lost"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "connection was lost"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "no HTTP"),
    ],
)
def test_answers_that_are_none(answer, said):
    url, thread = raw_server(answer)
    with pytest.raises(Unreachable, match=said):
        posted(url)
    thread.join()


def test_nobody_there_and_nobody_speaks():
    with serving(Fake()) as url:
        pass
    with pytest.raises(Unreachable, match="no connection to http://127"):
        posted(url)
    with serving(Fake(pause=5)) as url, pytest.raises(Unreachable, match=r"no byte in 0.05 s"):
        posted(url, timeout_seconds=0.05)


def test_a_connection_that_was_closed_while_idle_is_no_failure():
    fake = Fake()
    with serving(fake) as url:

        async def ask() -> list[int]:
            client = Client(url)
            found = [(await client.get("/v1/models")).status]
            [idle] = client._idle
            idle.transport._sock.shutdown(2)  # as a server does that tidies up
            found.append((await client.get("/v1/models")).status)
            await client.close()
            return found

        assert asyncio.run(ask()) == [200, 200]
    assert fake.connections == 2


def test_what_a_listener_raises_comes_through():
    def refuse(data: bytes, at: float) -> None:
        raise ZeroDivisionError

    async def ask() -> None:
        client = Client(url)
        try:
            await client.post("/v1/completions", BODY, refuse)
        finally:
            await client.close()

    with serving(Fake()) as url, pytest.raises(ZeroDivisionError):
        asyncio.run(ask())


def test_errors_are_read_as_servers_write_them():
    bodies = b'{"error": {"message": "no"}}', b'{"message": "no"}', b'{"detail": "no"}', b"no", b'{"error": "no"}'
    assert {error_text(Reply(404, body, 0.0)) for body in bodies} == {"HTTP 404: no"}
    assert error_text(Reply(500, b"x" * 999, 0.0)).endswith(" ...")


def test_a_sample_times_only_events_with_text():
    sample = Sample(due=0.0, wanted_input=7, keep_text=True, sent=10.0)
    texts = [("", 11.0), ("a", 12.0), ("bc", 12.5), ("", 12.6), ("d", 13.0)]
    for text, at in texts:
        sample(json.dumps({"choices": [{"delta": {"content": text}, "index": 0}]}).encode(), at)
    sample.ended = 14.0
    assert (sample.ttft, sample.gaps, sample.texts) == (2.0, [0.5, 0.5], ["a", "bc", "d"])
    assert (sample.input_tokens, sample.output_tokens, sample.closed) == (7, 3, False)
    assert sample.tpot == 1.0
    sample(b'{"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5}}', 13.1)
    sample(b"[DONE]", 13.2)
    assert (sample.input_tokens, sample.output_tokens, sample.tpot, sample.closed) == (9, 5, 0.5, True)
    assert sample.cached_tokens is None and sample.error is None


@pytest.mark.parametrize(
    ("event", "said"), [(b"{", "no chunk"), (b'{"error": {"message": "engine died"}}', "engine died"), (b"[1]", "no")]
)
def test_events_that_are_errors(event, said):
    sample = Sample(0.0, None)
    sample(event, 1.0)
    assert said in (sample.error or "")


@pytest.mark.parametrize("delta", [{"reasoning_content": "x"}, {"reasoning": "x"}, {"tool_calls": [{"index": 0}]}])
def test_thinking_and_calls_are_text_too(delta):
    sample = Sample(0.0, None)
    sample(json.dumps({"choices": [{"delta": delta}]}).encode(), 1.0)
    assert sample.first == 1.0
