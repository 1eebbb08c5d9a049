"""Tools of a chat: told to the model, forced where that was asked for, and read back from what it writes."""

import json
import uuid
from dataclasses import dataclass
from typing import Any

from octavo.engine.grammar_spec import GrammarSpec
from octavo.serve.protocol.chat import ChatRequest
from octavo.serve.tools import FORMATS, Arguments, CallStart, Content, format_of_template, grammar_for_tools, parse
from octavo.serve.tools.streams import ToolStream

__all__ = ["CallWriter", "ToolUse"]

_TOLD = """You can call functions. These are the tools, one JSON object a line:
<tools>
{tools}
</tools>
To call one, answer with its name and its arguments as JSON, between these tags:
<tool_call>
{{"name": "the name", "arguments": {{}}}}
</tool_call>"""


@dataclass(frozen=True)
class ToolUse:
    """`format_name`: how calls are written; "none" where the request has no tools, or forbids them."""

    messages: list[dict[str, Any]]
    variables: dict[str, Any]
    grammar: GrammarSpec | None
    format_name: str

    @classmethod
    def of(cls, body: ChatRequest, messages: list[dict[str, Any]], template: str | None, chosen: str) -> "ToolUse":
        """`chosen`: the option `tool_call_parser`. A template that knows nothing of tools is told of them in the system
        message, in the format of Hermes. Raises RequestError."""
        if not body.tools or body.tool_choice == "none":
            return cls(messages, {}, None, "none")
        tools = [tool.model_dump(exclude_unset=True) | {"type": "function"} for tool in body.tools]
        choice = body.tool_choice if isinstance(body.tool_choice, str | None) else body.tool_choice.model_dump()
        knows = template is not None and "tools" in template
        name = (format_of_template(template) if knows else "hermes") if chosen == "auto" else chosen
        grammar = grammar_for_tools(tools, choice, body.parallel_tool_calls is not False, name)
        if knows:
            return cls(messages, {"tools": tools}, grammar, name)
        return cls(_told(messages, tools), {}, grammar, name)

    def stream(self) -> "CallWriter | None":
        return None if self.format_name == "none" else CallWriter(FORMATS[self.format_name].stream())

    def message(self, text: str) -> dict[str, Any]:
        """The assistant's message that a whole text makes."""
        if self.format_name == "none":
            return {"role": "assistant", "content": text}
        found = parse(self.format_name, text)
        if not found.calls:
            return {"role": "assistant", "content": found.content}
        calls = [_call(call.name, call.arguments) for call in found.calls]
        return {"role": "assistant", "content": found.content.strip() or None, "tool_calls": calls}


class CallWriter:
    """The deltas of one choice of a stream."""

    def __init__(self, stream: ToolStream):
        self._stream = stream
        self.called = False

    def feed(self, text: str, last: bool) -> list[dict[str, Any]]:
        """What more text gives: objects for `delta`."""
        found = self._stream.feed(text) + (self._stream.close() if last else [])
        return [made for delta in found if (made := self._delta(delta)) is not None]

    def _delta(self, delta: Content | CallStart | Arguments) -> dict[str, Any] | None:
        match delta:
            case Content():
                return None if self.called and not delta.text.strip() else {"content": delta.text}
            case CallStart():
                self.called = True
                return {"tool_calls": [{"index": delta.index, **_call(delta.name, "")}]}
            case Arguments():
                return {"tool_calls": [{"index": delta.index, "function": {"arguments": delta.text}}]}


def _call(name: str, arguments: str) -> dict[str, Any]:
    identity = f"call_{uuid.uuid4().hex[:24]}"
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def _told(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    text = _TOLD.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if messages and messages[0].get("role") == "system":
        first = messages[0]
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *map(_plain, messages[1:])]
    return [{"role": "system", "content": text}, *map(_plain, messages)]


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """Calls and their results as text, for a template that would not show them."""
    if message.get("role") == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if message.get("tool_calls"):
        made = [call["function"] for call in message["tool_calls"]]
        calls = [json.dumps({"name": one["name"], "arguments": one["arguments"]}) for one in made]
        written = "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
        return {"role": message["role"], "content": f"{message['content']}\n{written}".strip()}
    return message
