"""Grammars that leave a model no choice but to call a tool, with arguments that fit the tool's schema."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.base.errors import RequestError
from octavo.engine.grammar_spec import JSON_OPTIONS, GrammarSpec
from octavo.serve.tools.formats import FORMATS, ToolFormat

__all__ = ["grammar_for_tools"]

_MOST_CALLS = 32
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


def grammar_for_tools(
    tools: Sequence[Mapping[str, Any]], tool_choice: str | Mapping[str, Any] | None, parallel: bool, format_name: str
) -> GrammarSpec | None:
    """For `tool_choice` "required" a call of any tool, up to 32 with `parallel`; for a named function (OpenAI's
    `{"type": "function", "function": {"name": ...}}`) one call of it; None for "auto", "none" and None.

    A tool's `strict: true` asks that every keyword of its schema be obeyed; otherwise those that cannot be are left
    out. Raises RequestError for a name that is not among the tools, a schema that is too much, and a format in which no
    call can be written.
    """
    if tool_choice in ("auto", "none", None):
        return None
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    if tool_choice == "required":
        chosen, most = list(functions), _MOST_CALLS if parallel else 1
    else:
        chosen, most = [_name_of(tool_choice)], 1
    if not chosen or chosen[0] not in functions:
        raise RequestError(
            f"tool_choice asks for {', '.join(chosen) or 'a tool'}, and the tools are: {', '.join(functions)}"
        )
    layout = FORMATS[format_name]
    if layout.arguments_key is None:
        raise RequestError(
            "how this model writes tool calls is not known, so that it cannot be made to",
            hint=f"start with --tool-call-parser ({', '.join(FORMATS)})",
        )
    rules = [f"call_{at}: {_call(functions[name], layout)}" for at, name in enumerate(chosen)]
    more = f" ({_literal(layout.separator)} call){{0,{most - 1}}}" if most > 1 else ""
    calls = " | ".join(f"call_{at}" for at in range(len(chosen)))
    return GrammarSpec("lark", "\n".join([f"start: call{more}", f"call: {calls}", *rules, ""]))


def _name_of(tool_choice: Any) -> str:
    try:
        name = tool_choice["function"]["name"]
    except (TypeError, KeyError):
        name = None
    if not isinstance(name, str):
        raise RequestError(
            'tool_choice is "auto", "none", "required" or {"type": "function", "function": {"name": ...}}'
        )
    return name


def _call(function: Mapping[str, Any], layout: ToolFormat) -> str:
    name = json.dumps(function["name"], ensure_ascii=False)
    opening = f'{layout.opening}{{"name": {name}, "{layout.arguments_key}": '
    given = function.get("parameters")
    options = {**JSON_OPTIONS, "lenient": not function.get("strict")}
    schema = {"type": "object", **(_NO_PARAMETERS if given is None else given), "x-guidance": options}
    body = GrammarSpec.of_schema(schema).text  # too large or too deep by itself is said of a schema, not of a grammar
    return f"{_literal(opening)} %json {body} {_literal('}' + layout.closing)}"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
