"""What is asked: random tokens of given lengths, rows that have prompts, or the lengths and times of a trace."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from octavo.base.errors import BadValue, UsageError

__all__ = ["Dataset", "Item", "Lengths", "Prompt", "Random", "Rows", "Style", "Trace", "Wanted"]

Prompt = str | list[int] | list[dict[str, Any]]

_LOWEST_ID = 300
"""below it vocabularies keep their special tokens and single bytes"""
_TEXT = (
    "the of and to in is for on that by this with you it not or be are from at as your all have new more an was we "
    "will home can us about if page my has search free but our one other do no information time they site he up may "
    "what which their news out use any there see only so his when contact here business who web also now help get"
)
_WORDS = _TEXT.split()
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

    @property
    def made_up(self) -> bool: ...
    @property
    def chat(self) -> bool: ...
    @property
    def timed(self) -> bool: ...

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
