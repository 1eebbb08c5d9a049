"""The formats in which models write tool calls."""

from collections.abc import Callable
from dataclasses import dataclass

from octavo.base.table import Table
from octavo.serve.tools.deltas import Parsed, joined
from octavo.serve.tools.streams import HermesStream, LlamaStream, PlainStream, ToolStream

__all__ = ["FORMATS", "ToolFormat", "format_of_template", "parse"]


@dataclass(frozen=True)
class ToolFormat:
    """`stream`: a new parser. A call is written `opening`, an object with `name` and `arguments_key`, `closing`;
    `separator` between two. `arguments_key` None: calls cannot be written."""

    stream: Callable[[], ToolStream]
    arguments_key: str | None = None
    opening: str = ""
    closing: str = ""
    separator: str = ""


FORMATS: Table[ToolFormat] = Table(
    "tool call parser",
    {
        # NousResearch/Hermes-Function-Calling; the templates of Qwen 2.5 and 3 write the same
        "hermes": ToolFormat(HermesStream, "arguments", "<tool_call>\n", "\n</tool_call>", "\n"),
        # Meta's prompt format of Llama 3.1 and 3.2, "JSON based tool calling"
        "llama3_json": ToolFormat(LlamaStream, "parameters", separator="; "),
        "none": ToolFormat(PlainStream),
    },
)


def format_of_template(template: str | None) -> str:
    """The name of the format that a chat template asks for, by the words in it."""
    if template is None:
        return "none"
    if "<tool_call>" in template:
        return "hermes"
    if "<|python_tag|>" in template or ("parameters" in template and "ipython" in template):
        return "llama3_json"
    return "none"


def parse(name: str, text: str) -> Parsed:
    """A whole text, by the format called `name`."""
    stream = FORMATS[name].stream()
    return joined([*stream.feed(text), *stream.close()])
