"""Sets of requests, and when each arrives: lengths drawn at random, or read from a trace of a real service.

    azure:    CSV with columns TIMESTAMP, ContextTokens, GeneratedTokens
    mooncake: JSON lines with timestamp (milliseconds), input_length, output_length

Contents are random token ids in every case; a trace gives lengths and arrivals.
"""

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path

import numpy as np

__all__ = ["SEED", "Job", "at_rate", "prompts", "random_jobs", "read_trace", "that_fit"]

SEED = 7
"""of the published sets"""


@dataclass(frozen=True)
class Job:
    """One request: it arrives `arrival` seconds after the start and wants exactly `output_tokens` new tokens."""

    prompt_tokens: int
    output_tokens: int
    arrival: float = 0.0


def random_jobs(count: int, prompt: tuple[int, int], output: tuple[int, int], seed: int) -> list[Job]:
    """All at once; lengths uniform over the ranges, both ends included."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(*prompt, count, endpoint=True), draw.integers(*output, count, endpoint=True)
    return [Job(int(new), int(out)) for new, out in zip(*lengths, strict=True)]


def at_rate(jobs: list[Job], per_second: float, seed: int) -> list[Job]:
    """The same jobs with Poisson arrivals."""
    gaps = np.random.default_rng(seed).exponential(1 / per_second, len(jobs))
    return [replace(job, arrival=float(at)) for job, at in zip(jobs, np.cumsum(gaps), strict=True)]


def prompts(jobs: list[Job], vocabulary: int, seed: int) -> list[list[int]]:
    """Random token ids for each job; no two share a first page but by chance."""
    draw = np.random.default_rng(seed + 1)
    return [draw.integers(0, vocabulary, job.prompt_tokens).tolist() for job in jobs]


def read_trace(file: Path, count: int, scale: float = 1.0) -> list[Job]:
    """The first `count` requests of a trace, arriving `scale` times as fast as they did; the first arrives at 0."""
    with file.open(newline="") as lines:
        rows = list(islice(_READERS.get(file.suffix, _azure)(lines), count))
    begin = min((at for at, _, _ in rows), default=0.0)
    return [Job(max(new, 1), max(out, 1), (at - begin) / scale) for at, new, out in sorted(rows)]


def that_fit(jobs: list[Job], longest: int) -> list[Job]:
    """The jobs whose prompt and output together have at most `longest` tokens."""
    return [job for job in jobs if job.prompt_tokens + job.output_tokens <= longest]


Rows = Iterable[tuple[float, int, int]]


def _azure(lines: Iterable[str]) -> Rows:
    for row in csv.DictReader(lines):
        at = datetime.fromisoformat(row["TIMESTAMP"].strip()[:26]).timestamp()  # to the microsecond
        yield at, int(row["ContextTokens"]), int(row["GeneratedTokens"])


def _mooncake(lines: Iterable[str]) -> Rows:
    for line in lines:
        row = json.loads(line)
        yield row["timestamp"] / 1e3, int(row["input_length"]), int(row["output_length"])


_READERS: dict[str, Callable[[Iterable[str]], Rows]] = {".csv": _azure, ".jsonl": _mooncake}
