"""Parsers that are fed a text in pieces and give the same deltas, taken together, however it was cut.

A call is announced when it is complete and known to be one: what turns out not to be a call is content, and what was
given out cannot be taken back. White space beside a call is dropped; nothing else is.
"""

from typing import Protocol

from octavo.serve.tools.deltas import Arguments, CallStart, Content, Delta
from octavo.serve.tools.objects import ObjectCut, call_of

__all__ = ["HermesStream", "LlamaStream", "PlainStream", "ToolStream"]


class ToolStream(Protocol):
    def feed(self, text: str) -> list[Delta]: ...

    def close(self) -> list[Delta]:
        """The end of the text; nothing may be fed after it."""
        ...


class PlainStream:
    """Knows no calls."""

    def feed(self, text: str) -> list[Delta]:
        return [Content(text)] if text else []

    def close(self) -> list[Delta]:
        return []


class _Stream:
    """`_left` is what is not decided yet: white space, the beginning of a tag, an object under way."""

    tag: str
    argument_keys: tuple[str, ...]

    def __init__(self) -> None:
        self._left = ""
        self._calls = 0
        self._object: ObjectCut | None = None
        """of the object under way in `_left`"""
        self._begin = 0
        """where in `_left` it begins"""
        self._before = "start"
        """what came before `_left`: "start", "text" or "call" """

    def feed(self, text: str) -> list[Delta]:
        self._left += text
        return self._run(final=False)

    def close(self) -> list[Delta]:
        return self._run(final=True)

    def _run(self, final: bool) -> list[Delta]:
        deltas: list[Delta] = []
        while self._left and (found := self._step(final)) is not None:
            deltas += found
        return deltas

    def _step(self, final: bool) -> list[Delta] | None:
        """Decide something about `_left`; None when that needs more text."""
        if self._object is not None:
            return self._inside(self._object, final)
        opening = self._opening()
        if opening is None and not final:
            return None
        if opening:
            [self._begin] = opening
            self._object = ObjectCut(self._begin)
            return []
        if final and self._before == "call" and not self._left.strip():
            self._left = ""
            return []
        return self._outside(final)

    def _inside(self, cut: ObjectCut, final: bool) -> list[Delta] | None:
        end = cut.end(self._left)
        if end is None:
            return self._give(len(self._left)) if final else None
        call = call_of(self._left[self._begin : end], self.argument_keys)
        if call is None:
            return self._give(end)
        self._left, self._object, self._before = self._left[end:], None, "call"
        self._calls += 1
        return [CallStart(self._calls - 1, call.name), Arguments(self._calls - 1, call.arguments)]

    def _outside(self, final: bool) -> list[Delta] | None:
        """Text, as far as no tag can begin in it; white space stays with what follows it."""
        left = self._left
        first = len(left) - len(left.lstrip()) + 1  # no object is opened here, so this letter is text
        at = left.find(self.tag, first)
        if at < 0 and final:
            return self._give(len(left))
        if at < 0:
            at = len(left) - _overlap(left, self.tag, first)
        count = max(len(left[:at].rstrip()), min(first, len(left)))
        return self._give(count)

    def _give(self, count: int) -> list[Delta]:
        text, self._left = self._left[:count], self._left[count:]
        self._object, self._before = None, "text"
        return [Content(text)]

    def _opening(self) -> tuple[int, ...] | None:
        """Where the object begins that `_left` leads to; () if it leads to none, None if that is not decided."""
        raise NotImplementedError

    def _after(self, lead: str) -> tuple[int, ...] | None:
        """`_opening` for an object that comes after a tag or separator, with white space around it."""
        rest = self._left.lstrip()
        if not rest.startswith(lead):
            return None if lead.startswith(rest) else ()
        rest = rest[len(lead) :].lstrip()
        if not rest:
            return None
        return (len(self._left) - len(rest),) if rest[0] == "{" else ()


class HermesStream(_Stream):
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>` anywhere in the text. A closing tag that is missing is
    not missed."""

    tag, argument_keys = "<tool_call>", ("arguments", "parameters")
    closing = "</tool_call>"

    def _step(self, final: bool) -> list[Delta] | None:
        if self._before == "call":
            rest = self._left.lstrip()
            if rest.startswith(self.closing):
                self._left = rest[len(self.closing) :]
                return []
            if self.closing.startswith(rest) and not final:
                return None
        return super()._step(final)

    def _opening(self) -> tuple[int, ...] | None:
        return self._after(self.tag)


class LlamaStream(_Stream):
    """`{"name": ..., "parameters": {...}}` at the start of the text or after `<|python_tag|>`; more after `;`."""

    tag, argument_keys = "<|python_tag|>", ("parameters", "arguments")

    def _opening(self) -> tuple[int, ...] | None:
        rest = self._left.lstrip()
        if self._before == "start" and rest.startswith("{"):
            return (len(self._left) - len(rest),)
        found = self._after(self.tag)
        return self._after(";") if found == () and self._before == "call" else found


def _overlap(text: str, tag: str, first: int) -> int:
    """How many last letters of `text`, from `first` on, may be the beginning of the tag."""
    most = min(len(tag) - 1, len(text) - first)
    return next((count for count in range(most, 0, -1) if text.endswith(tag[:count])), 0)
