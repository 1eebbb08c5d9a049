"""What a text must look like, said by a request and checked where it is born. Pure: no torch, nothing is compiled."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from octavo.base.errors import RequestError
from octavo.base.table import Table
from octavo.engine.schema_bounds import check_schema

__all__ = [
    "JSON_OPTIONS", "MAX_CHOICES", "MAX_DEPTH", "MAX_LARK_BYTES", "MAX_REGEX_BYTES", "MAX_SCHEMA_BYTES", "GrammarKind",
    "GrammarSpec",
]  # fmt: skip

GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "lark"]

MAX_SCHEMA_BYTES = 64 << 10
MAX_REGEX_BYTES = 4 << 10
MAX_LARK_BYTES = 128 << 10
MAX_CHOICES = 1024
MAX_DEPTH = 64
"""levels of lists and objects inside each other in a schema, or of brackets in a lark grammar"""

JSON_OPTIONS: Mapping[str, Any] = {
    "item_separator": ",",
    "key_separator": ":",
    # one space, or a new line and its indentation: a model that likes blank lines cannot go on with them for ever
    "whitespace_flexible": True,
    "whitespace_pattern": r"( |\n {0,64}|\n\t{0,16})",
    # `oneOf` is read as `anyOf`: to exclude what two branches have in common is not possible while writing
    "coerce_one_of": True,
    "lenient": False,
}
"""how JSON is written; a schema's own `x-guidance` does not change it"""


@dataclass(frozen=True)
class GrammarSpec:
    """`text` is, by `kind`:

    json_schema   a JSON schema as JSON
    json_object   nothing: any JSON object will do
    regex         a regular expression that the whole text matches; no look-around, no back-references
    choice        a JSON list of texts, one of which it is
    lark          a grammar in llguidance's dialect of Lark, with a rule `start`

    Raises RequestError for a kind that is unknown, and a text that is too long, too deep or malformed. Only compiling
    tells whether the rest makes sense.
    """

    kind: GrammarKind
    text: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise RequestError(f"a grammar's text is a string, not {type(self.text).__name__}")
        if self.kind not in _KINDS:
            raise RequestError(f"unknown grammar kind: `{str(self.kind)[:40]}` (have {', '.join(_KINDS)})")
        limit_bytes, check = _KINDS[self.kind]
        try:
            size_bytes = len(self.text.encode())
        except UnicodeEncodeError:
            raise RequestError(f"{self.kind}: the text holds a lone surrogate, which is not Unicode text") from None
        if size_bytes > limit_bytes:
            raise RequestError(f"{self.kind}: {size_bytes} bytes are given, at most {limit_bytes} are allowed")
        check(self.text)

    @classmethod
    def of_schema(cls, schema: Mapping[str, Any]) -> "GrammarSpec":
        return cls("json_schema", _dumps(schema))

    @classmethod
    def of_choices(cls, choices: Sequence[str]) -> "GrammarSpec":
        return cls("choice", _dumps(list(choices)))

    @property
    def choices(self) -> list[str]:
        """The texts of kind `choice`."""
        return json.loads(self.text)


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise RequestError(f"a schema is at most {MAX_DEPTH} levels deep") from None
    except (TypeError, ValueError) as error:
        raise RequestError(f"this is not JSON: {str(error)[:100]}") from None


def _check_schema(text: str) -> None:
    schema = _loads("json_schema", text)
    if not isinstance(schema, dict):
        raise RequestError("json_schema: a schema is an object")
    check_schema(schema)


def _check_nothing(text: str) -> None:
    if text:
        raise RequestError("json_object: takes no text", hint="a schema is of kind json_schema")


def _check_regex(text: str) -> None:
    if not text:
        raise RequestError("regex: the expression is empty")


def _check_choices(text: str) -> None:
    choices = _loads("choice", text)
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
        raise RequestError("choice: takes a list of texts, none of them empty")
    if not 1 <= len(choices) <= MAX_CHOICES:
        raise RequestError(f"choice: {len(choices)} texts are given, 1 to {MAX_CHOICES} are allowed")


def _check_lark(text: str) -> None:
    _check_depth("lark", text)
    if not text.strip():
        raise RequestError("lark: the grammar is empty")
    check_schema(_schemas_within(text))


def _schemas_within(lark: str) -> list[Any]:
    """What follows each `%json`."""
    decoder, found = json.JSONDecoder(parse_constant=_no_constant), []
    at = lark.find("%json")
    while at >= 0:
        begin = at + len("%json")
        begin += len(lark[begin:]) - len(lark[begin:].lstrip())
        try:
            schema, end = decoder.raw_decode(lark, begin)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"lark: what follows %json is not JSON: {str(error)[:100]}") from None
        found.append(schema)
        at = lark.find("%json", end)
    return found


def _loads(what: str, text: str) -> Any:
    """JSON, of a depth that was checked before anything recursive sees it."""
    _check_depth(what, text)
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{what}: this is not JSON: {str(error)[:100]}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _check_depth(what: str, text: str) -> None:
    """Brackets outside of double-quoted strings."""
    depth, quoted, escaped = 0, False, False
    for letter in text:
        if quoted:
            quoted = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter == '"':
            quoted = True
        elif letter in "([{":
            depth += 1
            if depth > MAX_DEPTH:
                raise RequestError(f"{what}: is nested more than {MAX_DEPTH} levels deep")
        elif letter in ")]}":
            depth -= 1


_KINDS: Table[tuple[int, Callable[[str], None]]] = Table(
    "grammar kind",
    {
        "json_schema": (MAX_SCHEMA_BYTES, _check_schema),
        "json_object": (MAX_SCHEMA_BYTES, _check_nothing),
        "regex": (MAX_REGEX_BYTES, _check_regex),
        "choice": (MAX_SCHEMA_BYTES, _check_choices),
        "lark": (MAX_LARK_BYTES, _check_lark),
    },
)
