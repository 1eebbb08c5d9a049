"""What the metrics say, read back through Prometheus' own parser."""

import time

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from octavo.serve.histogram import Histogram, Rates, Recent
from octavo.serve.metrics import COUNTERS, GAUGES, HISTOGRAMS, PREFIX, Metrics
from octavo.serve.wire import Stats

FACTS = {
    "model": {"id": "tiny"},
    "kv_cache": {
        "dtype": "int8", "plan": "int8 everywhere", "bytes_per_token": 100.0, "page_tokens": 64, "pages": 10,
        "self_test": {"status": "passed", "kl_mean": 0.001},
    },
}  # fmt: skip


def stats(steps=1, **changes) -> Stats:
    zero = Stats(*(0 for _ in Stats.__struct_fields__))
    return msgspec.structs.replace(zero, steps=steps, pages_total=10, **changes)


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Value by name and labels, the model's name left out where it is right."""
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            if sample.name.startswith(PREFIX):
                assert labels.pop("model_name") == 'a "model"\\'
            found[sample.name.removeprefix(PREFIX), tuple(sorted(labels.items()))] = sample.value
    return found


@pytest.fixture
def metrics() -> Metrics:
    return Metrics('a "model"\\')


def test_everything_is_there_from_the_start(metrics):
    names = {name for name, _ in samples(metrics)}
    assert names >= {*COUNTERS, *GAUGES, *(f"{name}_bucket" for name in HISTOGRAMS), "cache_config_info"}
    assert samples(metrics)["request_success_total", (("finished_reason", "stop"),)] == 0
    assert samples(metrics)["kv_cache_usage_perc", ()] == 0
    Metrics("another")  # a second server in one process does not clash


@pytest.mark.parametrize("name", COUNTERS)
def test_counters_follow_the_engine_and_never_fall(metrics, name):
    field = COUNTERS[name][1]

    def told(steps: int, total: int) -> float:
        metrics.stats(msgspec.structs.replace(stats(steps), **{field: steps if field == "steps" else total}))
        return samples(metrics)[name, ()]

    first, second = told(5, 70), told(9, 90)
    assert (first, second) == ((5, 9) if field == "steps" else (70, 90))
    metrics.engine_restarted()
    assert samples(metrics)[name, ()] == second
    after = told(2, 3)
    assert after == second + (2 if field == "steps" else 3)
    # an engine that was replaced unannounced
    assert told(1, 1) == after + 1


def test_a_restart_empties_what_ran(metrics):
    metrics.ready(FACTS)
    metrics.stats(stats(3, running=2, waiting=1, pages_held=5))
    assert samples(metrics)["num_requests_running", ()] == 2
    assert samples(metrics)["engine_up", ()] == 1
    metrics.engine_restarted()
    now = samples(metrics)
    assert [now[name, ()] for name in GAUGES] == [0, 0, 0, 0]
    assert now["engine_restarts_total", ()] == 1


def test_cache_in_bytes_and_tokens_by_dtype(metrics):
    metrics.ready(FACTS)
    metrics.stats(stats(1, pages_held=4))
    now, by = samples(metrics), (("dtype", "int8"),)
    assert now["kv_cache_usage_perc", ()] == pytest.approx(0.4)
    assert (now["kv_cache_used_tokens", by], now["kv_cache_free_tokens", by]) == (256, 384)
    assert (now["kv_cache_used_bytes", by], now["kv_cache_free_bytes", by]) == (25_600, 38_400)
    info = next(dict(labels) for name, labels in now if name == "cache_config_info")
    assert info == {
        "dtype": "int8", "plan": "int8 everywhere", "bytes_per_token": "100.0", "page_tokens": "64", "pages": "10",
        "self_test": "passed",
    }  # fmt: skip


def test_bytes_read_of_a_step(metrics):
    metrics.stats(stats(1, bytes_read=100_000))
    metrics.stats(stats(2, bytes_read=1_100_000))
    now = samples(metrics)
    assert now["kv_cache_step_read_bytes_count", ()] == 2
    assert now["kv_cache_step_read_bytes_sum", ()] == now["kv_cache_read_bytes_total", ()] == 1_100_000


def test_a_request(metrics):
    metrics.arrived()
    metrics.first_token(0.4, 0.1, 0.3)
    metrics.gap(0.04, 2)
    metrics.gap(0.3, 1)
    metrics.gap(5.0, 0)
    metrics.finished("length", 1.5, 0.34, 100, 4)
    metrics.finished("abort", 0.2, None, 100, 0)
    now = samples(metrics)
    assert now["requests_total", ()] == 1
    assert now["inter_token_latency_seconds_count", ()] == 3
    assert now["inter_token_latency_seconds_sum", ()] == pytest.approx(0.34)
    assert now["inter_token_latency_seconds_bucket", (("le", "0.02"),)] == 2
    assert now["time_to_first_token_seconds_bucket", (("le", "0.3"),)] == 0
    assert now["time_to_first_token_seconds_bucket", (("le", "0.5"),)] == 1
    assert now["request_queue_time_seconds_sum", ()] == pytest.approx(0.1)
    assert now["request_prefill_time_seconds_sum", ()] == pytest.approx(0.3)
    assert now["request_decode_time_seconds_count", ()] == 1
    assert now["e2e_request_latency_seconds_count", ()] == 2
    assert now["request_prompt_tokens_sum", ()] == 200
    assert now["request_success_total", (("finished_reason", "length"),)] == 1
    assert now["request_success_total", (("finished_reason", "abort"),)] == 1


def test_rejected_by_status(metrics):
    for status in (429, 429, 413):
        metrics.rejected(status)
    now = samples(metrics)
    assert now["requests_rejected_total", (("status", "429"),)] == 2
    assert now["requests_rejected_total", (("status", "413"),)] == 1


def test_snapshot(metrics):
    assert metrics.snapshot() == {
        "tokens_per_second": 0.0, "prompt_tokens_per_second": 0.0,
        "time_to_first_token_ms": None, "inter_token_latency_ms": None,
    }  # fmt: skip
    for seconds in (0.1, 0.2, 0.9):
        metrics.first_token(seconds, None, None)
        metrics.gap(seconds / 10, 1)
    metrics.stats(stats(4, generated_tokens=50))
    now = metrics.snapshot()
    assert now["time_to_first_token_ms"] == pytest.approx(200)
    assert now["inter_token_latency_ms"] == pytest.approx(20)
    assert now["tokens_per_second"] > 0


def test_histogram_counts_at_its_bounds():
    histogram = Histogram((1, 2, 4))
    for value in (0.5, 1, 1.5, 4, 9):
        histogram.add(value)
    assert histogram.buckets() == [("1.0", 2), ("2.0", 3), ("4.0", 4), ("+Inf", 5)]


def test_rates_are_means_of_a_window_and_end():
    now = 0.0
    rates = Rates(5.0, 0.1, clock=lambda: now)
    total = 0
    for step in range(1, 1001):  # 100 steps a second, 3 tokens each
        now, total = step / 100, step * 3
        rates.add(total, 0)
    assert rates.per_second(total, 0)[0] == pytest.approx(300, rel=0.03)
    assert len(rates.kept) < 200
    now += 2.5
    assert rates.per_second(total, 0)[0] == pytest.approx(150, rel=0.05)
    now += 60
    assert rates.per_second(total, 0) == (0.0, 0.0)


def test_medians_forget():
    now = 0.0
    recent = Recent(60.0, 4, clock=lambda: now)
    for value in (100.0, 1.0, 2.0, 3.0, 4.0):
        recent.add(value)
    assert recent.median() == 2.5
    now = 61.0
    assert recent.median() is None


def best_microseconds(call, times=2000) -> float:
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for index in range(times):
            call(index)
        best = min(best, (time.perf_counter() - start) / times)
    return best * 1e6


def test_hot_calls_are_cheap(metrics):
    """Bounds are five times what they should cost, for a busy machine."""
    told = [stats(step, generated_tokens=step, bytes_read=step << 20) for step in range(2000)]
    assert best_microseconds(lambda index: metrics.stats(told[index])) < 25
    assert best_microseconds(lambda index: metrics.gap(0.02, 1)) < 15
