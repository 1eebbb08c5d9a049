"""What a run of requests comes to, under the names that serving benchmarks share."""

import statistics
from dataclasses import dataclass, field
from typing import Any

from benchmarks.load import Job

__all__ = ["Record", "summary"]


@dataclass
class Record:
    """What was seen of one request, in seconds from the start: when it was added, when each token came."""

    job: Job
    added: float = 0.0
    tokens: list[float] = field(default_factory=list)
    ended: float | None = None


def summary(records: list[Record], seconds: float) -> dict[str, Any]:
    """Throughput over `seconds`; a run that was stopped counts the tokens it gave. Times are from a request's arrival:
    ttft to its first token, e2el to its last; tpot is the mean time of a token after the first, itl each of them."""
    done = [record for record in records if record.ended is not None]
    # a prompt counts once its first token came: whoever is still in prefill when a run is stopped is not counted
    taken = sum(record.job.prompt_tokens for record in records if record.tokens)
    given = sum(len(record.tokens) for record in records)
    gaps = [[b - a for a, b in zip(one.tokens, one.tokens[1:], strict=False)] for one in done]
    times = {
        "ttft": [one.tokens[0] - one.job.arrival for one in records if one.tokens],
        "tpot": [statistics.fmean(gap) for gap in gaps if gap],
        "itl": [gap for one in gaps for gap in one],
        "e2el": [one.ended - one.job.arrival for one in done if one.ended is not None],
    }
    found: dict[str, Any] = {
        "duration": seconds, "completed": len(done), "failed": len(records) - len(done),
        "total_input_tokens": taken, "total_output_tokens": given, "request_throughput": len(done) / seconds,
        "output_throughput": given / seconds, "total_token_throughput": (taken + given) / seconds,
    }  # fmt: skip
    for name, values in times.items():
        found |= {f"{kind}_{name}_ms": value for kind, value in _spread(values).items()}
    return found


def _spread(seconds: list[float]) -> dict[str, float | None]:
    """Milliseconds; None where nothing was seen."""
    if not seconds:
        return dict.fromkeys(("mean", "median", "std", "p99"))
    ordered = sorted(1e3 * value for value in seconds)
    last = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    found = {"mean": statistics.fmean(ordered), "median": statistics.median(ordered),
             "std": statistics.pstdev(ordered), "p99": last}  # fmt: skip
    return {name: round(value, 3) for name, value in found.items()}
