"""Spans of requests, on an engine that only pretends; the collector is a list, or nobody."""

import asyncio
import subprocess
import sys
import time

import pytest
from fake_engine import fake_app
from starlette.testclient import TestClient

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from octavo.base.errors import BadValue
from octavo.serve.traces import open_traces
from octavo.serve.wire import Event

pytestmark = pytest.mark.filterwarnings("ignore")
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "a"}]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def traced_app(**more):
    exporter = InMemorySpanExporter()
    traces = open_traces("http://127.0.0.1:9", "smollm2", lambda: "int8", exporter)
    app, desk, link = fake_app(traces=traces, **more)
    return app, desk, link, exporter


def test_a_span_tells_what_was_asked_and_what_came():
    app, _, _, exporter = traced_app()
    with TestClient(app) as client:
        body = {"messages": MESSAGES, "max_tokens": 7, "temperature": 0.5, "stream": True}
        headers = {"traceparent": PARENT, "X-Request-Id": "mine"}
        assert client.post(CHAT, json=body, headers=headers).status_code == 200
        assert client.post(TEXT, json={"prompt": "a", "n": 2}).status_code == 200
        assert client.post(TEXT, json={"prompt": ""}).status_code == 400
        client.get("/v1/models")
        client.get(CHAT)
    chat, text, refused = exporter.get_finished_spans()
    assert chat.name == "chat smollm2" and f"{chat.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{chat.parent.span_id:016x}" == PARENT.split("-")[2]
    told = chat.attributes
    assert (told["gen_ai.request.max_tokens"], told["gen_ai.request.temperature"]) == (7, 0.5)
    assert told["gen_ai.response.id"] == "mine" and told["gen_ai.response.finish_reasons"] == ("stop",)
    assert told["gen_ai.usage.output_tokens"] == 3 and told["gen_ai.usage.input_tokens"] > 1
    assert told["octavo.kv_cache.dtype"] == "int8" and told["octavo.usage.cached_tokens"] == 0
    e2e, first = told["gen_ai.latency.e2e"], told["gen_ai.latency.time_to_first_token"]
    assert 0 < first <= e2e < 5 and chat.end_time - chat.start_time == pytest.approx(1e9 * e2e, abs=1e3)
    assert chat.status.is_unset
    assert text.parent is None and text.attributes["gen_ai.request.choice.count"] == 2
    assert text.attributes["gen_ai.response.finish_reasons"] == ("stop", "stop")
    assert (
        refused.attributes["http.response.status_code"] == 400 and "gen_ai.usage.input_tokens" not in refused.attributes
    )


def test_an_engine_that_dies_is_an_error():
    import threading

    app, _, link, exporter = traced_app(holds=True)
    with TestClient(app) as client:
        thread = threading.Thread(target=lambda: client.post(TEXT, json={"prompt": "a"}))
        thread.start()
        while not link.open_requests:
            time.sleep(0.01)
        client.portal.call(link.fail_all, "enough")
        thread.join(5)
    (span,) = exporter.get_finished_spans()
    assert span.attributes["http.response.status_code"] == 503 and span.status.status_code is StatusCode.ERROR


def test_an_engine_that_dies_in_a_stream_is_an_error_too():
    app, _, link, exporter = traced_app(holds=True)

    async def dies() -> None:
        async with app.router.lifespan_context(app):
            asking, _, begun = ask_for_a_stream(app, link)
            await begun.wait()
            link.fail_all("enough")
            await asyncio.wait_for(asking, 5)

    asyncio.run(dies())
    (span,) = exporter.get_finished_spans()
    assert span.attributes["http.response.status_code"] == 200 and span.attributes["error.type"] == "503"
    assert span.status.status_code is StatusCode.ERROR and span.status.description == "enough"
    assert span.attributes["gen_ai.response.finish_reasons"] == ("abort",)


def test_a_client_that_leaves_is_no_error():
    app, _, link, exporter = traced_app(holds=True)

    async def leaves() -> None:
        async with app.router.lifespan_context(app):
            asking, given, begun = ask_for_a_stream(app, link)
            await begun.wait()
            given.put_nowait({"type": "http.disconnect"})
            await asyncio.wait_for(asking, 5)

    asyncio.run(leaves())
    (span,) = exporter.get_finished_spans()
    assert span.attributes["error.type"] == "client_disconnected" and span.status.is_unset
    assert span.attributes["gen_ai.usage.output_tokens"] == 1


def ask_for_a_stream(app, link):
    """The task, the client's end, and an event that is set once a token has been sent."""
    body = b'{"prompt": "a", "stream": true}'
    given: asyncio.Queue[dict] = asyncio.Queue()
    given.put_nowait({"type": "http.request", "body": body, "more_body": False})
    begun = asyncio.Event()
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": TEXT, "raw_path": TEXT.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))],
    }  # fmt: skip

    async def send(message) -> None:
        if message.get("body"):
            begun.set()

    async def asks() -> None:
        doing = asyncio.create_task(app(scope, given.get, send))
        while not link.open_requests:
            await asyncio.sleep(0.005)
        inbox, choice = next(iter(link._homes.values()))
        inbox.put(choice, Event(1, 28, " a", None, None, None, 0, 0.0, 0.0))
        await doing

    return asyncio.create_task(asks()), given, begun


def test_a_bug_is_an_error_and_says_nothing_of_itself(monkeypatch: pytest.MonkeyPatch):
    app, desk, _, exporter = traced_app()

    def fails(*_):
        raise KeyError("a secret")

    monkeypatch.setattr(desk, "headers", fails)
    with TestClient(app) as client:
        reply = client.post(TEXT, json={"prompt": "a"})
        rejected = client.get("/metrics").text
    (span,) = exporter.get_finished_spans()
    assert reply.status_code == 500 and reply.headers["X-Request-Id"] and "secret" not in reply.text
    assert 'status="500"' in rejected
    assert span.attributes["error.type"] == "500" and span.status.status_code is StatusCode.ERROR
    assert "secret" not in span.to_json()


def test_a_span_that_cannot_be_told_breaks_nothing(caplog: pytest.LogCaptureFixture):
    def fails() -> str:
        raise KeyError("dtype")

    app, _, _ = fake_app(traces=open_traces("http://127.0.0.1:9", "smollm2", fails, InMemorySpanExporter()))
    with TestClient(app) as client:
        assert client.post(TEXT, json={"prompt": "a"}).status_code == 200
    assert "a span is lost" in caplog.text


def test_the_environment_names_the_service(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    app, _, _, exporter = traced_app()
    with TestClient(app) as client:
        client.post(TEXT, json={"prompt": "a"})
    assert exporter.get_finished_spans()[0].resource.attributes["service.name"] == "mine"


def test_a_dead_collector_holds_nothing_up():
    app, _, _ = fake_app(otlp_traces_endpoint="http://127.0.0.1:9")
    begin = time.monotonic()
    with TestClient(app) as client:
        for _ in range(5):
            assert client.post(TEXT, json={"prompt": "a"}).status_code == 200
        assert time.monotonic() - begin < 2
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("url", ["localhost:4318", "ftp://a", "http://", ""])
def test_what_is_no_url(url: str):
    with pytest.raises(BadValue, match="otlp_traces_endpoint"):
        open_traces(url, "a", lambda: None)


def test_nothing_is_imported_without_them():
    code = (
        "import sys; sys.path.insert(0, 'tests/serve'); from fake_engine import fake_app; fake_app();"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.sdk')]"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
