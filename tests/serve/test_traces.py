"""Spans of requests, on an engine that only pretends; the collector is a list, or nobody."""

import subprocess
import sys
import time

import pytest
from fake_engine import fake_app
from starlette.testclient import TestClient

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from octavo.base.errors import BadValue
from octavo.serve.traces import open_traces

pytestmark = pytest.mark.filterwarnings("ignore")
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "a"}]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def traced_app(**more):
    exporter = InMemorySpanExporter()
    traces = open_traces("http://127.0.0.1:9", "smollm2", "int8", exporter)
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
    assert span.attributes["http.response.status_code"] == 503 and not span.status.is_ok
    assert not span.status.is_unset


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
        open_traces(url, "a", "int8")


def test_nothing_is_imported_without_them():
    code = (
        "import sys; sys.path.insert(0, 'tests/serve'); from fake_engine import fake_app; fake_app();"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.sdk')]"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
