"""Bounds on JSON schemas whose compiling would take seconds, or more stack than there is. Pure.

They come from trying: what was slow without them is in tests/engine/test_grammar.py.
"""

import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from octavo.base.errors import RequestError

__all__ = ["check_schema"]

_MOST_ENTRIES = 1024
"""in one object or list"""
_MOST_PATTERN_PROPERTIES = 32
"""in the whole schema: the expressions are compared pair by pair"""
_MOST_MERGES = 16
"""in the whole schema: branches of `allOf` after the first, and references or choices with other conditions beside
them. They are multiplied out, and a message about n patterns that are joined has 2^n parts."""
_MOST_PATTERN_LETTERS = 4096
_MOST_MULTIPLE = 10_000
"""least common multiple of all `multipleOf`, in units of their last decimal: states of an automaton"""
_MOST_REFERENCES = 512
_COMBINING = frozenset({"$ref", "allOf", "anyOf", "oneOf"})
_REMARKS = frozenset({
    "$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples", "deprecated",
    "readOnly", "writeOnly", "discriminator",
})  # fmt: skip
"""they put no condition on a value"""


def check_schema(schema: Any) -> None:
    """Raises RequestError for a schema, or a list of schemas of one grammar, that is too much."""
    references = patterns = merges = 0
    multiple = 1
    for key, value in _entries(schema):
        if isinstance(value, dict | list) and len(value) > _MOST_ENTRIES:
            raise _too_many(
                f"{len(value)} entries in one {'object' if isinstance(value, dict) else 'list'}", _MOST_ENTRIES
            )
        references += key == "$ref"
        patterns += len(value) if key == "patternProperties" and isinstance(value, dict) else 0
        merges += _merges(value)
        if _longest_pattern(key, value) > _MOST_PATTERN_LETTERS:
            raise _too_many(f"{_longest_pattern(key, value)} letters of a pattern", _MOST_PATTERN_LETTERS)
        if key == "multipleOf" and isinstance(value, int | float):
            multiple = math.lcm(multiple, _in_units(value))
    counts = (
        (references, "$ref", _MOST_REFERENCES),
        (patterns, "patternProperties", _MOST_PATTERN_PROPERTIES),
        (merges, "schemas that have to be joined (allOf; conditions beside $ref, anyOf, oneOf)", _MOST_MERGES),
    )
    for count, what, most in counts:
        if count > most:
            raise _too_many(f"{count} {what}", most)
    if multiple > _MOST_MULTIPLE:
        raise RequestError(f"json_schema: the values of multipleOf have no common multiple up to {_MOST_MULTIPLE}")


def _merges(value: Any) -> int:
    """How often two schemas must be made one to read this one."""
    if not isinstance(value, dict):
        return 0
    combined = value.keys() & _COMBINING
    beside = len(combined) > 1 or (len(combined) == 1 and bool(value.keys() - _COMBINING - _REMARKS))
    branches = value.get("allOf")
    return beside + (max(len(branches) - 1, 0) if isinstance(branches, list) else 0)


def _longest_pattern(key: str | None, value: Any) -> int:
    if key == "pattern" and isinstance(value, str):
        return len(value)
    return max(map(len, value), default=0) if key == "patternProperties" and isinstance(value, dict) else 0


def _too_many(what: str, most: int) -> RequestError:
    return RequestError(f"json_schema: {what} are more than {most}")


def _in_units(value: float) -> int:
    """0.25 -> 25: the number without its decimal point, and without its sign."""
    _, digits, exponent = Decimal(repr(value)).as_tuple()
    number = int("".join(map(str, digits)))
    if not isinstance(exponent, int) or exponent > 300:
        return _MOST_MULTIPLE + 1
    return max(1, number * 10 ** max(exponent, 0))


def _entries(value: Any) -> Iterator[tuple[str | None, Any]]:
    """Everything in it, with its key in an object; no recursion."""
    left: list[tuple[str | None, Any]] = [(None, value)]
    while left:
        key, value = left.pop()
        yield key, value
        if isinstance(value, dict):
            left += value.items()
        elif isinstance(value, list):
            left += [(None, item) for item in value]
