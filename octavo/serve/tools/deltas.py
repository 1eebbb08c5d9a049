"""What a parser of tool calls gives: text for the reader, and calls."""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Arguments", "CallStart", "Content", "Delta", "Parsed", "ToolCall", "joined"]


@dataclass(frozen=True)
class Content:
    text: str


@dataclass(frozen=True)
class CallStart:
    """A call begins; calls are numbered from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class Arguments:
    """More of the arguments of a call: JSON, in pieces."""

    index: int
    text: str


Delta = Content | CallStart | Arguments


@dataclass(frozen=True)
class ToolCall:
    """`arguments` is a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Parsed:
    content: str
    calls: tuple[ToolCall, ...]


def joined(deltas: Iterable[Delta]) -> Parsed:
    """What the deltas of a stream add up to."""
    content, names, arguments = "", [], []
    for delta in deltas:
        match delta:
            case Content():
                content += delta.text
            case CallStart():
                names.append(delta.name)
                arguments.append("")
            case Arguments():
                arguments[delta.index] += delta.text
    return Parsed(content, tuple(ToolCall(*pair) for pair in zip(names, arguments, strict=True)))
