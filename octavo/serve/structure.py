"""What an answer must look like: `response_format` and `structured_outputs` as a grammar of the sampler."""

import json
from typing import Any

from octavo.base.errors import OctavoError
from octavo.engine.grammar_spec import GrammarSpec
from octavo.serve.errors import ApiError
from octavo.serve.protocol.sampling import RequestFields, ResponseFormat

__all__ = ["grammar_json", "grammar_of"]

_KINDS = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "lark"}
"""names of vLLM's `structured_outputs` -> kinds of grammars"""


def grammar_of(body: RequestFields) -> GrammarSpec | None:
    """Raises ApiError 400 for what is no grammar, or two of them."""
    asked = [
        (name, make) for name, make in (("response_format", _of_format), ("structured_outputs", _of_structured))
        if getattr(body, name) is not None
    ]  # fmt: skip
    found = []
    for name, make in asked:
        try:
            found.append(make(getattr(body, name)))
        except OctavoError as error:
            raise ApiError(400, f"{name}: {error.message}", "invalid_value", name) from None
    found = [one for one in found if one is not None]
    if len(found) > 1:
        raise ApiError(400, "give either response_format or structured_outputs", "invalid_value", "structured_outputs")
    return found[0] if found else None


def grammar_json(spec: GrammarSpec) -> dict[str, str]:
    """As it goes to the engine."""
    return {"kind": spec.kind, "text": spec.text}


def _of_format(given: ResponseFormat) -> GrammarSpec | None:
    if given.type == "text":
        return None
    if given.type == "json_object":
        return GrammarSpec("json_object")
    if given.type == "regex":
        if given.regex is None:
            raise ApiError(400, "response_format.regex is missing", "invalid_value", "response_format")
        return GrammarSpec("regex", given.regex)
    schema = given.json_schema.schema_ if given.json_schema else None
    if schema is None:
        raise ApiError(400, "response_format.json_schema.schema is missing", "invalid_value", "response_format")
    return GrammarSpec.of_schema(schema)


def _of_structured(given: dict[str, Any]) -> GrammarSpec | None:
    asked = {name: value for name, value in given.items() if value is not None and name != "_backend"}
    known = [name for name in asked if name in _KINDS or name == "json_object"]
    if len(known) != 1 or len(asked) != 1:
        have, got = ", ".join((*_KINDS, "json_object")), ", ".join(asked) or "nothing"
        message = f"structured_outputs takes one of {have}, not {got}"
        raise ApiError(400, message[:500], "invalid_value", "structured_outputs")
    (name,) = known
    value = asked[name]
    if name == "json_object":
        return GrammarSpec("json_object")
    if name in ("json", "choice") and not isinstance(value, str):
        try:
            value = json.dumps(value, allow_nan=False)
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"structured_outputs.{name}: {error}"[:500], None, "structured_outputs") from None
    return GrammarSpec(_KINDS[name], value)  # type: ignore[arg-type]
