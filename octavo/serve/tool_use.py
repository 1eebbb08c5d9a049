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
        made = [call["function"] for call in message["tool_calls"]]
        calls = [json.dumps({"name": one["name"], "arguments": one["arguments"]}) for one in made]
        written = "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
        return {"role": message["role"], "content": f"{message['content']}\n{written}".strip()}
    return message
