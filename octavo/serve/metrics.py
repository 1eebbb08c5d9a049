"""What `/metrics` tells Prometheus, and the rates and medians of `/live`.

The engine's counters arrive whole with every step and are only kept; sums are made when somebody asks. Names are the
field's, behind the prefix `octavo:`; every sample says the model.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from octavo.serve.histogram import Histogram, Rates, Recent
from octavo.serve.wire import Stats

__all__ = ["COUNTERS", "GAUGES", "HISTOGRAMS", "PREFIX", "Metrics"]

PREFIX = "octavo:"

_TO_FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_BETWEEN = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_WHOLE = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920)
_TOKENS = tuple(float(1 << power) for power in range(18))
_BYTES = tuple(float(1 << power) for power in range(16, 42, 2))

HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "time_to_first_token_seconds": ("From the arrival of a request to its first token.", _TO_FIRST),
    "inter_token_latency_seconds": ("Between two tokens of a stream.", _BETWEEN),
    "e2e_request_latency_seconds": ("From the arrival of a request to its last token.", _WHOLE),
    "request_queue_time_seconds": ("Waiting for a place among the running.", _WHOLE),
    "request_prefill_time_seconds": ("From the start of a request to its first token.", _WHOLE),
    "request_decode_time_seconds": ("From the first token of a request to its last.", _WHOLE),
    "request_prompt_tokens": ("Prompt tokens of a finished request.", _TOKENS),
    "request_generation_tokens": ("Generated tokens of a finished request.", _TOKENS),
    "kv_cache_step_read_bytes": ("Bytes of encoded K and V that attention read in a step.", _BYTES),
}
"""Name: what it measures, upper bounds of its buckets."""

COUNTERS: dict[str, tuple[str, str]] = {
    "engine_steps_total": ("Steps of the engine.", "steps"),
    "num_preemptions_total": ("Requests that were put back because pages ran out.", "preemptions"),
    "prompt_tokens_total": ("Prompt tokens run through the model, prefix hits left out.", "prompt_tokens"),
    "generation_tokens_total": ("Tokens generated.", "generated_tokens"),
    "prefix_cache_queries_total": ("Prompt tokens looked up in the prefix index.", "prefix_queries"),
    "prefix_cache_hits_total": ("Prompt tokens found in the prefix index.", "prefix_hits"),
    "kv_cache_read_bytes_total": ("Bytes of encoded K and V that attention read.", "bytes_read"),
    "kv_cache_clipped_values_total": ("Numbers that a static scale clipped.", "clipped"),
}
"""Name: what it counts, the field of `wire.Stats` that it follows."""

GAUGES: dict[str, str] = {
    "num_requests_running": "Requests that are running.",
    "num_requests_waiting": "Requests that wait for a place.",
    "kv_cache_usage_perc": "Share of the cache's pages that requests hold; 1 is all.",
    "engine_up": "1 while an engine runs, 0 while it loads or restarts.",
}

_CACHE_GAUGES: dict[str, tuple[str, bool, str]] = {
    "kv_cache_used_bytes": ("Bytes of the pages that requests hold.", True, "bytes"),
    "kv_cache_free_bytes": ("Bytes of the pages that no request holds.", False, "bytes"),
    "kv_cache_used_tokens": ("Tokens that fit into the pages that requests hold.", True, "tokens"),
    "kv_cache_free_tokens": ("Tokens that fit into the pages that no request holds.", False, "tokens"),
}

_REASONS = ("stop", "length", "abort", "error")
_STATUSES = ("400", "429", "503")
_ZERO = Stats(*(0 for _ in Stats.__struct_fields__))
_TOTALS = tuple(field for _, field in COUNTERS.values())


class _Page(NamedTuple):
    """What a page of the cache holds."""

    dtype: str
    bytes: float
    tokens: float


class Metrics:
    """All that is counted of one server. Every instance has its own registry.

    One thread calls the methods that count; `render` and `snapshot` may be called from any."""

    def __init__(self, model_name: str):
        self.model_name = model_name
        self.facts: dict[str, Any] = {}
        self.up = False
        self.restarts = 0
        self.requests = 0
        self.rejections: dict[str, int] = dict.fromkeys(_STATUSES, 0)
        self.finishes: dict[str, int] = dict.fromkeys(_REASONS, 0)
        self.now = _ZERO
        # totals of the engines that are gone: what an engine says is added to them
        self.gone = dict.fromkeys(_TOTALS, 0)
        self.histograms = {name: Histogram(bounds) for name, (_, bounds) in HISTOGRAMS.items()}
        self._gaps = self.histograms["inter_token_latency_seconds"]
        self._step_bytes = self.histograms["kv_cache_step_read_bytes"]
        self._rates = Rates()
        self._first_tokens, self._recent_gaps = Recent(60.0, 512), Recent(60.0, 512)
        self.registry = CollectorRegistry()
        self.registry.register(self)  # type: ignore[arg-type]
        ProcessCollector(registry=self.registry)

    def ready(self, facts: dict[str, Any]) -> None:
        """An engine runs. `facts`: `model` and `kv_cache`, as in `/live`."""
        self.facts = facts
        self.up = True

    def stats(self, stats: Stats) -> None:
        """The engine's counters after a step. Totals that fell are those of a new engine."""
        before = self.now
        if stats.steps < before.steps:
            self._keep_totals()
            before = self.now
        self.now = stats
        gone = self.gone
        self._rates.add(gone["generated_tokens"] + stats.generated_tokens, gone["prompt_tokens"] + stats.prompt_tokens)
        if stats.bytes_read > before.bytes_read:
            self._step_bytes.add(stats.bytes_read - before.bytes_read)

    def arrived(self) -> None:
        """A request was taken."""
        self.requests += 1

    def rejected(self, status: int) -> None:
        """A request was answered with an error of this HTTP status."""
        self.rejections[str(status)] = self.rejections.get(str(status), 0) + 1

    def first_token(
        self, seconds_since_arrival: float, queue_seconds: float | None = None, prefill_seconds: float | None = None
    ) -> None:
        """A request has its first token. What is not known is left out."""
        self._first_tokens.add(seconds_since_arrival)
        self.histograms["time_to_first_token_seconds"].add(seconds_since_arrival)
        self._observe("request_queue_time_seconds", queue_seconds)
        self._observe("request_prefill_time_seconds", prefill_seconds)

    def gap(self, seconds: float, tokens: int) -> None:
        """So long after the delivery before it came one of `tokens` tokens: they share the time evenly."""
        if tokens > 0:
            each = seconds / tokens
            self._gaps.add(each, tokens)
            self._recent_gaps.add(each)

    def finished(
        self, reason: str, e2e_seconds: float, decode_seconds: float | None, prompt_tokens: int, output_tokens: int
    ) -> None:
        """A request has ended. `decode_seconds` is None where it never had a token."""
        self.finishes[reason] = self.finishes.get(reason, 0) + 1
        self._observe("e2e_request_latency_seconds", e2e_seconds)
        self._observe("request_decode_time_seconds", decode_seconds)
        self._observe("request_prompt_tokens", prompt_tokens)
        self._observe("request_generation_tokens", output_tokens)

    def given_up(self, reason: str, count: int) -> None:
        """So many answers did not come to their end: "abort", the client left; "error", the engine did. They are in no
        histogram."""
        self.finishes[reason] += count

    def engine_restarted(self) -> None:
        """The engine is gone and another one is being started; `ready` says when it runs."""
        self._keep_totals()
        self.restarts += 1
        self.up = False

    def snapshot(self) -> dict[str, float | None]:
        """Tokens a second of the last 5 seconds and medians of the last minute (None: nothing was measured)."""
        generated, prompt = self._rates.per_second(self.total("generated_tokens"), self.total("prompt_tokens"))
        first, gap = self._first_tokens.median(), self._recent_gaps.median()
        return {
            "tokens_per_second": round(generated, 2),
            "prompt_tokens_per_second": round(prompt, 2),
            "time_to_first_token_ms": None if first is None else round(first * 1e3, 3),
            "inter_token_latency_ms": None if gap is None else round(gap * 1e3, 3),
        }

    def total(self, field: str) -> int:
        """A total of `wire.Stats` over all engines of this server."""
        return self.gone[field] + getattr(self.now, field)

    def render(self) -> tuple[bytes, str]:
        """The text format of Prometheus, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4

    def collect(self) -> Iterator[Metric]:
        """All families; prometheus_client calls this."""
        # fmt: off
        for name, (text, field) in COUNTERS.items():
            yield self._family(CounterMetricFamily, name, text, {(): self.total(field)})
        yield self._family(CounterMetricFamily, "requests_total", "Requests taken.", {(): self.requests})
        yield self._family(CounterMetricFamily, "engine_restarts_total", "Times the engine was started again.",
                           {(): self.restarts})
        yield self._family(CounterMetricFamily, "request_success_total", "Requests that ended, by how.",
                           {(reason,): count for reason, count in dict(self.finishes).items()}, "finished_reason")
        yield self._family(CounterMetricFamily, "requests_rejected_total", "Requests refused, by HTTP status.",
                           {(status,): count for status, count in dict(self.rejections).items()}, "status")
        # fmt: on
        values = (self.now.running, self.now.waiting, self._usage(), self.up)
        for (name, text), value in zip(GAUGES.items(), values, strict=True):
            yield self._family(GaugeMetricFamily, name, text, {(): value})
        yield from self._cache_families()
        for name, (text, _) in HISTOGRAMS.items():
            histogram = self.histograms[name]
            family = HistogramMetricFamily(PREFIX + name, text, labels=["model_name"])
            family.add_metric([self.model_name], histogram.buckets(), histogram.sum)
            yield family

    def _cache_families(self) -> Iterator[Metric]:
        """What the cache is and how much of it is in use, by its dtype."""
        cache = self.facts.get("kv_cache") or {}
        per_token, page_tokens = cache.get("bytes_per_token") or 0.0, cache.get("page_tokens") or 0
        page = _Page(str(cache.get("dtype", "unknown")), per_token * page_tokens, page_tokens)
        for name, (text, is_used, unit) in _CACHE_GAUGES.items():
            pages = self.now.pages_held if is_used else self._pages() - self.now.pages_held
            yield self._family(GaugeMetricFamily, name, text, {(page.dtype,): pages * getattr(page, unit)}, "dtype")
        said = {name: str(cache.get(name, "unknown")) for name in _SAID}
        tested = cache.get("self_test")
        said["self_test"] = str(tested.get("status", "unknown") if isinstance(tested, dict) else tested or "unknown")
        text = "What the cache is; always 1."
        yield self._family(GaugeMetricFamily, "cache_config_info", text, {tuple(said.values()): 1}, *said)

    def _family(
        self, kind: Callable[..., Any], name: str, text: str, values: dict[tuple, float], *labels: str
    ) -> Metric:
        """A family whose samples carry the model's name and `labels`."""
        family = kind(PREFIX + name, text, labels=["model_name", *labels])
        for key, value in values.items():
            family.add_metric([self.model_name, *key], value)
        return family

    def _observe(self, name: str, value: float | None) -> None:
        if value is not None:
            self.histograms[name].add(value)

    def _pages(self) -> int:
        return self.now.pages_total or (self.facts.get("kv_cache") or {}).get("pages") or 0

    def _usage(self) -> float:
        pages = self._pages()
        return self.now.pages_held / pages if pages else 0.0

    def _keep_totals(self) -> None:
        """The engine that `now` tells of has ended: its totals stay, its requests do not."""
        for field in _TOTALS:
            self.gone[field] += getattr(self.now, field)
        self.now = msgspec.structs.replace(_ZERO, pages_total=self.now.pages_total)


_SAID = ("dtype", "plan", "bytes_per_token", "page_tokens", "pages")
