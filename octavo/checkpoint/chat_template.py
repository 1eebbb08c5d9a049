"""Chat templates: Jinja from a checkpoint, run in a sandbox, with the helpers that published templates expect."""

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from octavo.base.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["render_chat"]


def render_chat(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """The text of a chat. Raises RequestError for messages that are not a chat or that the template refuses, and
    CheckpointError for a template that is not Jinja."""
    if not messages or not all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in messages):
        raise RequestError("a chat is a list of messages, each with a `role` and a `content`")
    compiled = _compile(template)
    try:
        return compiled.render({"tools": None, "documents": None, **variables, "messages": messages})
    except Exception as error:  # the template is foreign code: whatever it trips over is about this request
        raise RequestError(f"the chat template refused the messages: {error}") from None


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> "Template":
    """Compiled with the options that published templates are written for (`trim_blocks`, `lstrip_blocks`)."""
    from jinja2 import TemplateError, ext, nodes
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(ext.Extension):
        """`{% generation %}` marks what the assistant wrote, for training; here it is transparent."""

        tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson  # jinja2's own escapes for HTML
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    try:
        return environment.from_string(template)
    except TemplateError as error:
        raise CheckpointError(f"the chat template is not valid Jinja: {error}") from None
