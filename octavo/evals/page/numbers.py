"""How numbers read on a page. What is not a number in a file is shown as it is, and what is not there as a dash."""

from collections.abc import Callable, Iterable
from typing import Any

from octavo.evals.page.blocks import Cell, Quantity

__all__ = ["bytes_", "count", "interval", "mib", "one_line", "percent", "points", "quantity", "rough", "tenths"]

NOT_THERE = "–"


def quantity(value: Any, form: Callable[[Any], str]) -> str | Quantity:
    """A number as `form` writes it; whatever else a file has in its place is shown as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NOT_THERE if value is None else str(value)
    return Quantity(value, form(value))


def count(value: Any) -> str | Quantity:
    return quantity(value, lambda number: f"{number:,}")


def percent(value: Any) -> str | Quantity:
    """Of a share: 0.2977 reads 29.77 %."""
    return quantity(value, lambda number: f"{100 * number:.2f} %")


def points(value: Any) -> str | Quantity:
    """Of a difference, in points: with its sign."""
    return quantity(value, lambda number: f"{number:+.2f}")


def rough(value: Any) -> str | Quantity:
    """Two digits that count, for what spans orders of magnitude."""
    return quantity(value, lambda number: f"{number:.2g}")


def mib(value: Any) -> str | Quantity:
    return quantity(value, lambda number: f"{number:,.1f}")


def bytes_(value: Any) -> str | Quantity:
    return quantity(value, lambda number: f"{number:,.0f}")


def tenths(value: Any) -> str | Quantity:
    return quantity(value, lambda number: f"{number:,.1f}")


def interval(pair: Any, form: Callable[[Any], str | Quantity]) -> Cell:
    """`low to high`, or that it is not there."""
    if not isinstance(pair, Iterable) or len(found := tuple(pair)) != 2:
        return NOT_THERE
    return form(found[0]), " to ", form(found[1])


def one_line(text: Any) -> str:
    return " ".join(str(text).split())
