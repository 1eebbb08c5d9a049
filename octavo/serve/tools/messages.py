"""Messages as chat templates expect them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.base.errors import RequestError

__all__ = ["prepare_messages"]

_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""type of a part -> the field that holds its text"""


def prepare_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI's messages made plain: parts of text joined, content None empty, arguments of tool calls as objects (the
    templates write them as JSON themselves). Raises RequestError for parts that are not text, and for arguments that
    are not JSON. Nothing given is changed."""
    return [_prepare(message, at) for at, message in enumerate(messages)]


def _prepare(message: Mapping[str, Any], at: int) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"messages[{at}] is not an object")
    made = {**message, "content": _text(message.get("content"), at)}
    if made.get("role") == "developer":  # OpenAI's newer word, which templates do not know
        made["role"] = "system"
    calls = message.get("tool_calls")
    if calls:
        made["tool_calls"] = [_call(call, f"messages[{at}].tool_calls[{number}]") for number, call in enumerate(calls)]
    elif "tool_calls" in made:  # some templates ask only whether it is there
        del made["tool_calls"]
    return made


def _text(content: Any, at: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise RequestError(f"messages[{at}].content is a text or a list of parts, not {type(content).__name__}")
    return "".join(_part(part, f"messages[{at}].content[{number}]") for number, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    field = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    text = part.get(field) if field else None
    if not isinstance(text, str):
        raise RequestError(f"{where} is `{str(kind)[:40]}`: only parts of type `text` are served")
    return text


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise RequestError(f"{where} has no function")
    return {**call, "function": {**function, "arguments": _arguments(function.get("arguments"), where)}}


def _arguments(given: Any, where: str) -> dict[str, Any]:
    value = given
    if isinstance(given, str):
        try:
            value = json.loads(given) if given.strip() else {}
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{where}.function.arguments is not JSON: {str(error)[:100]}") from None
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RequestError(f"{where}.function.arguments is not an object, nor the JSON of one")
    return {**value}
