"""From timed requests to the numbers that serving benchmarks print, under the names that they have elsewhere."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from octavo.base.errors import BadValue
from octavo.base.table import Table
from octavo.serve.bench.listen import Sample

__all__ = ["METRICS", "details", "figures", "parse_goodput"]

METRICS = ("ttft", "tpot", "itl", "e2el")
_PERCENTILES = (50, 90, 95, 99)
_ERRORS_SHOWN = 3


def parse_goodput(words: Sequence[str]) -> dict[str, float]:
    """`ttft:200 tpot:50`, in ms, as bounds in seconds. Raises BadValue and UnknownChoice."""
    known = Table("goodput metric", {name: name for name in METRICS if name != "itl"})
    found = {}
    for word in words:
        name, _, text = word.partition(":")
        try:
            bound = float(text)
        except ValueError:
            bound = 0.0
        if not bound > 0:
            raise BadValue(f"goodput: `{word}`", hint="--goodput ttft:200 tpot:50 e2el:5000, in ms")
        found[known.resolve(name)] = bound / 1e3
    return found


def figures(samples: Sequence[Sample], bounds: Mapping[str, float], cpu_seconds: float) -> dict[str, Any]:
    """The summary of a run. Times are of completed requests, in ms; null where there are none. `cpu_seconds`: what
    this process took of the processor meanwhile."""
    good = [sample for sample in samples if sample.error is None]
    begin = min((sample.sent for sample in samples), default=0.0)
    duration = max((sample.ended for sample in samples), default=0.0) - begin
    tokens_in, tokens_out = sum(one.input_tokens for one in good), sum(one.output_tokens for one in good)
    errors = Counter(sample.error for sample in samples if sample.error is not None)
    events = sum(len(one.gaps) + bool(one.first) for one in samples)
    cached = [one.cached_tokens for one in good if one.cached_tokens is not None]

    def per_second(amount: float) -> float:
        return amount / duration if duration > 0 else 0.0

    return {
        "duration": duration, "completed": len(good), "failed": len(samples) - len(good),
        "total_input_tokens": tokens_in, "total_output_tokens": tokens_out,
        "request_throughput": per_second(len(good)), "output_throughput": per_second(tokens_out),
        "total_token_throughput": per_second(tokens_in + tokens_out),
        "request_goodput": per_second(sum(_is_good(one, bounds) for one in good)) if bounds else None,
        **{key: value for name in METRICS for key, value in _spread(name, _milliseconds(name, good)).items()},
        "total_cached_tokens": sum(cached) if cached else None,
        "token_counts": "usage" if all(one.usage for one in good) else "chunks",
        "without_text": sum(one.first == 0 for one in good),
        "errors_first": [f"{count} x {error}" for error, count in errors.most_common(_ERRORS_SHOWN)],
        "client_cpu_share": per_second(cpu_seconds), "client_us_per_event": 1e6 * cpu_seconds / max(1, events),
    }  # fmt: skip


def details(samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """Every request by itself, in the order of the requests; times in seconds, as other tools write them."""
    begin = min((sample.sent for sample in samples), default=0.0)
    return {
        "input_lens": [one.input_tokens for one in samples],
        "output_lens": [one.output_tokens for one in samples],
        "ttfts": [one.ttft for one in samples],
        "itls": [one.gaps for one in samples],
        "e2els": [one.e2el for one in samples],
        "start_times": [one.sent - begin for one in samples],
        "due_times": [one.due - begin for one in samples],
        "generated_texts": ["".join(one.texts) for one in samples],
        "errors": [one.error for one in samples],
    }


def _is_good(sample: Sample, bounds: Mapping[str, float]) -> bool:
    """Within every bound. An answer of one token has no TPOT to be too slow; one without text is not good."""
    return sample.ttft is not None and all((getattr(sample, name) or 0.0) <= bound for name, bound in bounds.items())


def _milliseconds(name: str, samples: Sequence[Sample]) -> np.ndarray:
    if name == "itl":
        found = [gap for sample in samples for gap in sample.gaps]
    else:
        found = [value for sample in samples if (value := getattr(sample, name)) is not None]
    return np.asarray(found, dtype=np.float64) * 1e3


def _spread(name: str, values: np.ndarray) -> dict[str, float | None]:
    """mean, median, std (of the population) and percentiles (linear between values, as numpy's)."""
    keys = ["mean", "median", "std", *(f"p{share}" for share in _PERCENTILES)]
    if not len(values):
        return {f"{key}_{name}_ms": None for key in keys}
    numbers = [values.mean(), np.median(values), values.std(), *np.percentile(values, _PERCENTILES)]
    return {f"{key}_{name}_ms": float(number) for key, number in zip(keys, numbers, strict=True)}
