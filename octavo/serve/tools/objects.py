"""JSON objects in a text that comes in pieces, and calls in them."""

import json
from dataclasses import dataclass
from typing import NoReturn

from octavo.serve.tools.deltas import ToolCall

__all__ = ["ObjectCut", "call_of"]


@dataclass
class ObjectCut:
    """Finds where a JSON object ends by its braces and quotes. Every letter is looked at once."""

    seen: int
    """letters of the text that need no further look; at first, where the object begins"""
    depth: int = 0
    quoted: bool = False
    escaped: bool = False

    def end(self, text: str) -> int | None:
        """Where the object ends; None if not yet. `text` may only grow from call to call."""
        for at in range(self.seen, len(text)):
            self.seen = at + 1
            if self._ends_with(text[at]):
                return at + 1
        return None

    def _ends_with(self, letter: str) -> bool:
        if self.quoted:
            self.quoted = self.escaped or letter != '"'
            self.escaped = letter == "\\" and not self.escaped
            return False
        self.quoted = letter == '"'
        self.depth += (letter in "{[") - (letter in "}]")
        return self.depth <= 0


def call_of(text: str, argument_keys: tuple[str, ...]) -> ToolCall | None:
    """The call that a JSON object describes: a `name`, and an object (or its JSON as a text) under one of the keys.
    None if it is no call."""
    try:
        value = json.loads(text, strict=False, parse_constant=_refuse)
        name = value.pop("name") if isinstance(value, dict) else None
        given = [value[key] for key in argument_keys if key in value] if isinstance(value, dict) else []
        arguments = given[0] if given else {}
        arguments = json.loads(arguments, parse_constant=_refuse) if isinstance(arguments, str) else arguments
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            return None
        name.encode()
        return ToolCall(name, _dumps(arguments))
    except (ValueError, KeyError, RecursionError):
        return None


def _dumps(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate stays an escape
        return json.dumps(value, allow_nan=False)
    return text


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
