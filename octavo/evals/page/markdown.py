"""Blocks as Markdown: the same words and numbers as the HTML. Charts are named, not drawn."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from octavo.base.drawing import clean
from octavo.evals.page.blocks import Bullets, Cell, Chart, Code, Paragraph, Point, Quantity, Section, Table
from octavo.evals.page.numbers import one_line

__all__ = ["page_markdown"]

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|&#~$])")
_MARKS = {True: "[x] ", False: "[ ] ", None: ""}


def page_markdown(title: str, lead: str, sections: Sequence[Section], closing: str) -> str:
    """Headings, tables and lists, with a line for each chart that the HTML has."""
    lines = [f"# {_text(title)}", _text(lead)]
    for section in sections:
        if section.summary:
            lines += [f"**{_text(section.title)}**", _points(section.summary)]
    for section in sections:
        lines += [f"## {_text(section.title)}", *(_RENDERERS[type(block)](block) for block in section.blocks)]
    return "\n\n".join([*lines, _text(closing)]) + "\n"


def _text(text: Any) -> str:
    """On one line, with no letter that means something to Markdown or HTML."""
    return _SPECIAL.sub(r"\\\1", one_line(clean(text)))


def _parts(parts: Iterable[str | Quantity]) -> str:
    """Blanks at the seams stay."""
    found = [part.text if isinstance(part, Quantity) else part for part in parts]
    return _text("".join(found))


def _cell(cell: Cell) -> str:
    return _parts(cell if isinstance(cell, tuple) else (cell,))


def _points(points: Iterable[Point]) -> str:
    return "\n".join(f"- {_MARKS[point.good]}**{_text(point.mark)}** {_parts(point.parts)}" for point in points)


def _table(block: Table) -> str:
    numeric = [any(not isinstance(row.cells[column], str) for row in block.rows) for column in range(len(block.head))]
    rule = "|" + "|".join("---:" if is_number else "---" for is_number in numeric) + "|"
    rows = ["| " + " | ".join(_cell(cell) for cell in row.cells) + " |" for row in block.rows]
    return "\n".join([f"{_text(block.caption)}:", "", "| " + " | ".join(map(_text, block.head)) + " |", rule, *rows])


def _code(block: Code) -> str:
    """Indented, which no line can end."""
    return "\n".join(f"    {one_line(clean(line))}" for line in block.lines)


_RENDERERS: dict[type, Callable[[Any], str]] = {
    Paragraph: lambda block: _parts(block.parts),
    Bullets: lambda block: _points(block.points),
    Table: _table,
    Chart: lambda block: f"(chart in the HTML: {_text(block.caption)})",
    Code: _code,
}
