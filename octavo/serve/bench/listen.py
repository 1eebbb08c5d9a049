"""One streamed answer, as it is timed. This runs once for every token: it decodes, notes two numbers, and returns."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

__all__ = ["Sample"]


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


def _text(choice: _Choice) -> str:
    delta = choice.delta
    if delta is None:
        return choice.text or ""
    return delta.content or delta.reasoning_content or delta.reasoning or (" " if delta.tool_calls else "")


@dataclass(slots=True)
class Sample:
    """A request and its times in seconds of `time.perf_counter`; 0 is never. Called with each event of its stream."""

    due: float
    """when it was to be sent, by the arrivals"""
    wanted_input: int | None
    keep_text: bool = False
    sent: float = 0.0
    first: float = 0.0
    """the first event that carries text"""
    last: float = 0.0
    """the last event that carries text"""
    ended: float = 0.0
    gaps: list[float] = field(default_factory=list)
    """between events that carry text: one for each but the first, however many tokens an event has"""
    texts: list[str] = field(default_factory=list)
    usage: _Usage | None = None
    closed: bool = False
    """the stream said that it is complete"""
    error: str | None = None

    def __call__(self, data: bytes, at: float) -> None:
        if data == b"[DONE]":
            self.closed = True
            return
        try:
            chunk = _decode(data)
        except msgspec.MsgspecError as error:
            self.error = self.error or f"an event that is no chunk of a completion: {error}"
            return
        for choice in chunk.choices:
            self._choice(choice, at)
        if chunk.usage is not None:
            self.usage = chunk.usage
        if chunk.error is not None:
            self.error = f"within the stream: {_said(chunk.error)}"

    def _choice(self, choice: _Choice, at: float) -> None:
        if choice.finish_reason is not None:
            self.closed = True
        text = _text(choice)
        if not text:
            return
        if self.first:
            self.gaps.append(at - self.last)
        else:
            self.first = at
        self.last = at
        if self.keep_text:
            self.texts.append(text)

    @property
    def input_tokens(self) -> int:
        """As the server counts, else as wanted."""
        return self.usage.prompt_tokens if self.usage else self.wanted_input or 0

    @property
    def output_tokens(self) -> int:
        """As the server counts, else the events that carried text."""
        return self.usage.completion_tokens if self.usage else len(self.gaps) + bool(self.first)

    @property
    def cached_tokens(self) -> int | None:
        details = self.usage.prompt_tokens_details if self.usage else None
        return details.cached_tokens if details else None

    @property
    def ttft(self) -> float | None:
        """Seconds to the first text; None where there was none."""
        return self.first - self.sent if self.first else None

    @property
    def e2el(self) -> float:
        return self.ended - self.sent

    @property
    def tpot(self) -> float | None:
        """Seconds for each token after the first; None where there is only one."""
        if self.ttft is None or self.output_tokens < 2:
            return None
        return (self.e2el - self.ttft) / (self.output_tokens - 1)


def _said(error: Any) -> str:
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
