"""Datasets by name: `random`, JSONL files of prompts, and traces as others publish them."""

import csv
import datetime
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from octavo.base.errors import BadValue, UsageError
from octavo.base.table import Table
from octavo.serve.bench.datasets import Dataset, Prompt, Random, Rows, Trace, Wanted

__all__ = ["DATASETS", "open_dataset"]


def open_dataset(name: str, wanted: Wanted) -> Dataset:
    """`random`, a file's path, or `KIND:PATH`. Raises UsageError for a file that cannot be read."""
    kind, _, path = name.partition(":")
    if kind not in DATASETS:
        kind, path = Path(name).suffix.removeprefix("."), name
    if not 0 < wanted.rate_scale < 1e9:
        raise BadValue(f"rate-scale: {wanted.rate_scale} (above 0)")
    return DATASETS[kind](path, wanted)


def _random(path: str, wanted: Wanted) -> Dataset:
    if path:
        raise UsageError(f"--dataset random takes no file, and `{path}` is one")
    return Random(wanted)


def _jsonl(path: str, wanted: Wanted) -> Dataset:
    rows = []
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            rows.append(_row(line, f"{path}, line {number}"))
    if not rows:
        raise UsageError(f"{path} has no rows")
    return Rows(rows, wanted)


def _row(line: str, where: str) -> tuple[Prompt, int | None]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {error}") from error
    prompt: Any = (row.get("prompt") or row.get("messages")) if isinstance(row, dict) else None
    kind = int if isinstance(row, dict) and "prompt" in row else dict
    if not prompt or not (isinstance(prompt, str) or _all_are(kind, prompt)):
        raise UsageError(f"{where} has no `prompt` (a text or token ids) and no `messages`")
    answer = next((row[key] for key in ("output_tokens", "output_length", "max_tokens") if row.get(key)), None)
    if answer is not None and (not isinstance(answer, int) or answer < 1):
        raise UsageError(f"{where}: an answer of {answer} tokens")
    return prompt, answer


def _all_are(kind: type, parts: Any) -> bool:
    return isinstance(parts, list) and all(isinstance(part, kind) for part in parts)


_TIME = {"timestamp", "arrived_at", "arrival_time", "time"}
_ASK = {"contexttokens", "request tokens", "num_prefill_tokens", "input_length", "input_tokens", "prompt_tokens"}
_ANSWER = {"generatedtokens", "response tokens", "num_decode_tokens", "output_length", "output_tokens"}
"""headers of the Azure, BurstGPT, Vidur and Mooncake traces, and plain ones; in small letters"""


def _trace(path: str, wanted: Wanted) -> Dataset:
    rows = csv.DictReader(_lines(path))
    names = {name.strip().lower(): name for name in rows.fieldnames or ()}
    columns = [next((names[name] for name in names if name in known), None) for known in (_TIME, _ASK, _ANSWER)]
    if None in columns:
        have = ", ".join(names) or "none"
        raise UsageError(
            f"{path}: no columns for time, input and output (have {have})",
            hint="timestamp,input_tokens,output_tokens, or the headers of the Azure, BurstGPT and Vidur traces",
        )
    events = [_event(row, columns, f"{path}, line {rows.line_num}") for row in rows]
    events = sorted(event for event in events if event[1] > 0 and event[2] > 0)
    if not events:
        raise UsageError(f"{path} has no requests with tokens")
    return Trace(events, wanted)


def _event(row: Mapping[str, str], columns: list[Any], where: str) -> tuple[float, int, int]:
    at, ask, answer = (row[name] or "" for name in columns)
    try:
        return _seconds(at.strip()), int(float(ask)), int(float(answer))
    except ValueError as error:
        raise UsageError(f"{where}: no request with a time and two lengths: {at}, {ask}, {answer}") from error


def _seconds(text: str) -> float:
    """A number of seconds, or a date (taken as UTC where it has no zone)."""
    try:
        return float(text)
    except ValueError:
        moment = datetime.datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def _lines(path: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from file
    except (OSError, UnicodeError) as error:
        raise UsageError(f"cannot read `{path}`: {getattr(error, 'strerror', None) or error}") from error


DATASETS: Table[Callable[[str, Wanted], Dataset]] = Table(
    "dataset", {"random": _random, "jsonl": _jsonl, "trace": _trace}, {"json": "jsonl", "csv": "trace"}
)
