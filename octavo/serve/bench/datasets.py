"""What is asked: random tokens of given lengths, the rows of a JSONL file, or the lengths and times of a trace."""

import csv
import datetime
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from octavo.base.errors import BadValue, UsageError
from octavo.base.table import Table

__all__ = ["DATASETS", "Dataset", "Item", "Lengths", "Style", "Wanted", "open_dataset"]

Prompt = str | list[int] | list[dict[str, Any]]

_LOWEST_ID = 300
"""below it vocabularies keep their special tokens and single bytes"""
_WORDS = (
    "the of and to in is for on that by this with you it not or be are from at as your all have new more an was we will "
    "home can us about if page my has search free but our one other do no information time they site he up may what "
    "which their news out use any there see only so his when contact here business who web also now help get"
).split()
"""frequent English words, most of which are one token in any vocabulary"""


@dataclass(frozen=True)
class Item:
    """`input_tokens`: as wanted, None where only the server can count. `at`: seconds from the start, of traces."""

    prompt: Prompt
    input_tokens: int | None
    output_tokens: int
    at: float | None = None


@dataclass(frozen=True)
class Lengths:
    """Whole numbers from `low` to `high`, both possible, each as likely."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str, ratio: float = 0.0) -> "Lengths":
        """`128`, or `64:256`; a ratio of 0.25 makes 128 into 96:160. Raises BadValue."""
        try:
            numbers = [int(part) for part in text.split(":")]
        except ValueError:
            numbers = []
        if not 1 <= len(numbers) <= 2 or not 1 <= numbers[0] <= numbers[-1] <= 10_000_000:
            raise BadValue(f"not a length in tokens: `{text}`", hint="128, or 64:256")
        if not 0 <= ratio < 1:
            raise BadValue(f"range-ratio: {ratio} (0 or more, below 1)")
        low, high = int(numbers[0] * (1 - ratio)), int(numbers[-1] * (1 + ratio))
        return cls(max(1, low), max(1, high))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the flags say about a dataset."""

    input: Lengths = Lengths(512, 512)
    output: Lengths = Lengths(128, 128)
    rate_scale: float = 1.0


@dataclass(frozen=True)
class Style:
    """How random prompts are made: of token ids below `vocab`, or of words; `chat`: as messages."""

    ids: bool = True
    chat: bool = False
    vocab: int = 30_000

    def made_up(self, tokens: int, rng: np.random.Generator) -> Prompt:
        if self.ids and not self.chat:
            return rng.integers(_LOWEST_ID, self.vocab, tokens).tolist()
        text = " ".join(_WORDS[at] for at in rng.integers(0, len(_WORDS), tokens))
        return [{"role": "user", "content": text}] if self.chat else text

    def of(self, prompt: Prompt) -> Prompt:
        """A prompt of a file. Raises UsageError where the endpoint cannot take it."""
        messages = not isinstance(prompt, str) and isinstance(prompt[0], dict)
        if self.chat and isinstance(prompt, str):
            return [{"role": "user", "content": prompt}]
        if self.chat != messages:
            kind = "messages" if messages else "token ids"
            raise UsageError(f"the file has {kind}, which this endpoint does not take", hint="see --endpoint")
        return prompt


class Dataset(Protocol):
    """`made_up`: prompts have no text of their own. `chat`: the endpoint that suits. `timed`: items say when."""

    made_up: bool
    chat: bool
    timed: bool

    def items(self, count: int | None, level: int, style: Style, seed: int) -> tuple[list[Item], bool]:
        """`count` items (None: the dataset's own number) for a level of a sweep, other ones at each level; and whether
        some were asked before, since the dataset has no more."""
        ...


@dataclass(frozen=True)
class Random:
    wanted: Wanted
    made_up, chat, timed = True, False, False

    def items(self, count: int | None, level: int, style: Style, seed: int) -> tuple[list[Item], bool]:
        rng = np.random.default_rng([seed, level])
        found = []
        for _ in range(100 if count is None else count):
            ask, answer = (int(rng.integers(one.low, one.high + 1)) for one in (self.wanted.input, self.wanted.output))
            found.append(Item(style.made_up(ask, rng), ask, answer))
        return found, False


@dataclass(frozen=True)
class Rows:
    rows: list[tuple[Prompt, int | None]]
    wanted: Wanted
    made_up, timed = False, False

    @property
    def chat(self) -> bool:
        return not isinstance(self.rows[0][0], str) and isinstance(self.rows[0][0][0], dict)

    def items(self, count: int | None, level: int, style: Style, seed: int) -> tuple[list[Item], bool]:
        count = len(self.rows) if count is None else count
        rng = np.random.default_rng([seed, level])
        order = np.random.default_rng(seed).permutation(len(self.rows))
        found = []
        for n in range(level * count, (level + 1) * count):
            prompt, answer = self.rows[int(order[n % len(order)])]
            answer = answer or int(rng.integers(self.wanted.output.low, self.wanted.output.high + 1))
            known = len(prompt) if isinstance(prompt, list) and isinstance(prompt[0], int) else None
            found.append(Item(style.of(prompt), known, answer))
        return found, (level + 1) * count > len(self.rows)


@dataclass(frozen=True)
class Trace:
    events: list[tuple[float, int, int]]
    """seconds, tokens asked, tokens answered"""
    wanted: Wanted
    made_up, chat, timed = True, False, True

    def items(self, count: int | None, level: int, style: Style, seed: int) -> tuple[list[Item], bool]:
        rng = np.random.default_rng([seed, level])
        start, scale = self.events[0][0], self.wanted.rate_scale
        found = [
            replace(Item(style.made_up(ask, rng), ask, answer), at=(at - start) / scale)
            for at, ask, answer in self.events[:count]
        ]
        return found, False


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
    prompt = (row.get("prompt") or row.get("messages")) if isinstance(row, dict) else None
    kind = (dict if "messages" in row and "prompt" not in row else int) if isinstance(prompt, list) else None
    if not (isinstance(prompt, str) or (kind and all(isinstance(part, kind) for part in prompt))):
        raise UsageError(f"{where} has no `prompt` (a text or token ids) and no `messages`")
    answer = next((row[key] for key in ("output_tokens", "output_length", "max_tokens") if row.get(key)), None)
    if answer is not None and (not isinstance(answer, int) or answer < 1):
        raise UsageError(f"{where}: an answer of {answer} tokens")
    return prompt, answer


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
