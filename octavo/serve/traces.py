"""A span of each answered request, sent to an OpenTelemetry collector: what was asked, what came, where the time went.

Names are those of OpenTelemetry's conventions for generative AI, and vLLM's for latencies. The span is made when the
request has ended, from what is known of it then; nothing is kept for it meanwhile. OpenTelemetry is imported only here,
and only when traces are asked for.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from octavo.base.errors import BadValue, UsageError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

    from octavo.serve.exchange import Exchange

__all__ = ["MODEL_PATHS", "Traces", "open_traces"]

log = logging.getLogger("octavo")

MODEL_PATHS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
"""path -> gen_ai.operation.name"""
_SPANS, _SPAN_SECONDS = 2048, 2.0
_LATENCIES = {
    "queue": "gen_ai.latency.time_in_queue", "first": "gen_ai.latency.time_to_first_token",
    "prefill": "gen_ai.latency.time_in_model_prefill", "all": "gen_ai.latency.e2e",
}  # fmt: skip


class Traces:
    """Sends spans from a thread of its own. What a dead collector cannot take is dropped."""

    def __init__(self, provider: "TracerProvider", model: str, kv_cache_dtype: Callable[[], str | None]):
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("octavo")
        self._propagator = TraceContextTextMapPropagator()
        self._kv_cache_dtype = kv_cache_dtype
        self._always = {"gen_ai.provider.name": "octavo", "gen_ai.request.model": model}

    def record(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        """`scope` is ASGI's. A request that never reached the engine has no `exchange` in its state. Never raises."""
        try:
            self._record(scope, status, seconds)
        except Exception:
            log.exception("traces: a span is lost")

    def _record(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        operation = MODEL_PATHS[scope["path"]]
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
                   if name in (b"traceparent", b"tracestate")}  # fmt: skip
        end = time.time_ns()
        span = self._tracer.start_span(
            f"{operation} {self._always['gen_ai.request.model']}", self._propagator.extract(carrier), SpanKind.SERVER,
            start_time=end - int(1e9 * seconds),
        )  # fmt: skip
        state = scope["state"]
        exchange, failure = state.get("exchange"), state.get("failure")
        span.set_attributes({
            **self._always, "octavo.kv_cache.dtype": self._kv_cache_dtype() or "unknown",
            "gen_ai.operation.name": operation, "gen_ai.response.id": state["request_id"],
            "http.request.method": scope["method"], "url.path": scope["path"], "http.response.status_code": status,
            _LATENCIES["all"]: seconds,
        })  # fmt: skip
        if exchange is not None:
            span.set_attributes(_of_exchange(exchange))
        if failure is not None or status >= 400:
            span.set_attribute("error.type", str(failure.status if failure else status))
        elif exchange is not None and not exchange.complete:
            span.set_attribute("error.type", "client_disconnected")
        if max(status, failure.status if failure else 0) >= 500:  # what clients do wrong is no error of the server's
            span.set_status(Status(StatusCode.ERROR, failure.message if failure else f"HTTP {status}"))
        span.end(end)

    def close(self) -> None:
        """Sends what is left, for a bounded time."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(_SPAN_SECONDS)


def _of_exchange(exchange: "Exchange") -> dict[str, Any]:
    usage, params = exchange.usage, exchange.params
    asked = {f"gen_ai.request.{name}": params[name] for name in ("max_tokens", "temperature", "top_p", "top_k", "seed")
             if params.get(name) is not None}  # fmt: skip
    times = {_LATENCIES[name]: value for name, value in exchange.first_latencies.items()}
    return {
        **asked, **times, "gen_ai.request.choice.count": exchange.n,
        "gen_ai.response.finish_reasons": tuple(answer.finish or "abort" for answer in exchange.answers),
        "gen_ai.usage.input_tokens": usage["prompt_tokens"], "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "octavo.usage.cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
    }  # fmt: skip


def open_traces(
    endpoint: str, model: str, kv_cache_dtype: Callable[[], str | None], exporter: "SpanExporter | None" = None
) -> Traces:
    """`endpoint`: a collector's URL for OTLP over HTTP, `http://localhost:4318`, with or without `/v1/traces`.
    `kv_cache_dtype` is asked at every span; None: the engine has not said yet. OpenTelemetry's own variables
    (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_BSP_*`, `OTEL_EXPORTER_OTLP_HEADERS`) count too. Raises
    UsageError where OpenTelemetry is not installed, BadValue for what is no URL."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise UsageError("traces need OpenTelemetry", hint="pip install 'octavo[otel]'") from None
    scheme, _, rest = endpoint.partition("://")
    if scheme not in ("http", "https") or not rest.strip("/"):
        raise BadValue(f"otlp_traces_endpoint: `{endpoint}` (a URL, as http://localhost:4318)")
    url = endpoint if "/" in rest.rstrip("/") else endpoint.rstrip("/") + "/v1/traces"
    _quieten()
    named = {"service.name": "octavo", **OTELResourceDetector().detect().attributes}
    provider = TracerProvider(resource=Resource.create(named))
    chosen = exporter if exporter is not None else OTLPSpanExporter(url, timeout=_SPAN_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(chosen, max_queue_size=_SPANS))
    return Traces(provider, model, kv_cache_dtype)


def _quieten() -> None:
    """What OpenTelemetry logs of a dead collector becomes one line a minute of our log."""
    theirs = logging.getLogger("opentelemetry")
    theirs.propagate = False
    if not theirs.handlers:
        theirs.addHandler(_Sparse(logging.WARNING))


class _Sparse(logging.Handler):
    _next = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 60
            log.warning("traces: %s", record.getMessage()[:300])
