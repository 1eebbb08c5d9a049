"""Tool calls: finding them in what a model writes, making it write them, and chats that hold them. No torch."""

from octavo.serve.tools.deltas import Arguments, CallStart, Content, Delta, Parsed, ToolCall
from octavo.serve.tools.forced import grammar_for_tools
from octavo.serve.tools.formats import FORMATS, ToolFormat, format_of_template, parse
from octavo.serve.tools.messages import prepare_messages

__all__ = [
    "FORMATS", "Arguments", "CallStart", "Content", "Delta", "Parsed", "ToolCall", "ToolFormat", "format_of_template",
    "grammar_for_tools", "parse", "prepare_messages",
]  # fmt: skip
