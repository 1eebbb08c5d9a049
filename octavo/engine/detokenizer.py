"""Text of a growing sequence: whole characters only, stop strings found across tokens."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

__all__ = ["Decodes", "Remembered", "TextStream"]

_CONTEXT_TOKENS = 5
_REMEMBERED_TEXTS = 1 << 16
_REPLACEMENT = "\ufffd"


class Decodes(Protocol):
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


class Remembered:
    """A tokenizer that keeps the texts of single tokens and pairs, which is what streams ask for, and text repeats."""

    def __init__(self, tokenizer: Decodes):
        self._decode = tokenizer.decode
        self._short = lru_cache(_REMEMBERED_TEXTS)(lambda ids, skip: tokenizer.decode(ids, skip_special_tokens=skip))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        if len(ids) <= 2:
            return self._short(tuple(ids), skip_special_tokens)
        return self._decode(ids, skip_special_tokens=skip_special_tokens)


class TextStream:
    """Feed tokens, get what may be shown.

    A token can end inside a character, and some tokenizers write a token differently at the start of a text. So the
    last few tokens are decoded together with the new one, and what they add is the new text, once it is whole.
    Text that could be the beginning of a stop string is held back until it is known not to be.
    """

    def __init__(self, tokenizer: Decodes, prompt: Sequence[int], stop: tuple[str, ...] = (), keep_stop: bool = False,
                 skip_special_tokens: bool = True):  # fmt: skip
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids = list(prompt[-_CONTEXT_TOKENS:])
        self._shown_ids = 0  # [0, shown) is context; [shown, read) is decoded and given out; [read, end) is not whole
        self._read_ids = len(self._ids)
        self._stop = stop
        self._keep_stop = keep_stop
        self._sent = 0
        self.text = ""
        """all text so far; after a stop string, cut before it (or behind it, if it is to be kept)"""
        self.stopped_by: str | None = None

    def feed(self, token: int, may_stop: bool = True) -> str:
        """Add a token; returns the new text that may be shown. Sets `stopped_by` when a stop string is complete."""
        self._ids.append(token)
        before = self._decode(self._ids[self._shown_ids : self._read_ids])
        after = self._decode(self._ids[self._shown_ids :])
        if len(after) > len(before) and not after.endswith(_REPLACEMENT):
            self._shown_ids, self._read_ids = self._read_ids, len(self._ids)
            self._extend(after[len(before) :], may_stop)
        return self._send(hold=True)

    def close(self) -> str:
        """The end: what is left, half characters as U+FFFD, and text that was held back."""
        if self.stopped_by is None:
            before = self._decode(self._ids[self._shown_ids : self._read_ids])
            self._extend(self._decode(self._ids[self._shown_ids :])[len(before) :], may_stop=True)
        return self._send(hold=False)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip) if ids else ""

    def _extend(self, new: str, may_stop: bool) -> None:
        searched = len(self.text)
        self.text += new
        if not may_stop:
            return
        found = []
        for stop in self._stop:
            at = self.text.find(stop, max(self._sent, searched - len(stop) + 1))
            if at >= 0:
                found.append((at, stop))
        if found:
            at, stop = min(found)
            self.stopped_by = stop
            self.text = self.text[: at + len(stop) * self._keep_stop]

    def _send(self, hold: bool) -> str:
        held = self._held() if hold and self.stopped_by is None else 0
        end = max(len(self.text) - held, self._sent)
        out, self._sent = self.text[self._sent : end], end
        return out

    def _held(self) -> int:
        """How many last characters could be the beginning of a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self.text)), longest, -1):
                if self.text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
