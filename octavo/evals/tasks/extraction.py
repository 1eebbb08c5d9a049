"""From what a model wrote to its answer: numbers, as text in one spelling."""

import re
from collections.abc import Callable
from decimal import Decimal

from octavo.base.table import Table

__all__ = ["NO_ANSWER", "RULES", "number_text"]

NO_ANSWER = "(none)"
"""the answer where a rule finds none; it is never right"""

_NUMBER = re.compile(r"(?<![\w.)])-\s?\$?\s?(?=\.?\d)|(?=\.?\d)")
_DIGITS = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+")
_MARKED = re.compile(r"####[^\S\n]*([^\n]*)")


def number_text(text: str) -> str:
    """One spelling for each number: `$1,200.50` is 1200.5, `18.00` and `18.` are 18. Takes a plain number."""
    value = Decimal(text.replace(",", "").replace("$", "").replace(" ", "").rstrip("."))
    return f"{value.normalize():f}" if value else "0"


def _numbers(text: str) -> list[str]:
    """All numbers, in order. A minus counts where no letter, digit, point or bracket is before it: 5-3 is 5 and 3."""
    found, at = [], 0
    while (start := _NUMBER.search(text, at)) is not None:
        digits = _DIGITS.match(text, start.end())
        assert digits is not None, f"no digits at {start.end()} of {text!r}"
        found.append(number_text(("-" if start.group() else "") + digits.group()))
        at = digits.end()
    return found


def marked_or_last(text: str) -> str:
    """The first number after the first `####`, as GSM8K's own solutions end; without one there the last number."""
    marked = _MARKED.search(text)
    after = _numbers(marked.group(1)) if marked else []
    return after[0] if after else (_numbers(text) or [NO_ANSWER])[-1]


def first_number(text: str) -> str:
    return (_numbers(text) or [NO_ANSWER])[0]


RULES: Table[Callable[[str], str]] = Table(
    "answer rule", {"marked or last number": marked_or_last, "first number": first_number}
)
