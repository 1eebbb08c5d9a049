"""What a page is made of, before it is HTML or Markdown. Text is plain text here: escaping is the renderers' work.

A number that is shown is a `Quantity`: how it reads, and the value that a file gave, to the last digit.
"""

from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "Block", "Bullets", "Cell", "Chart", "Code", "Paragraph", "Point", "Quantity", "Row", "Section", "Table",
]  # fmt: skip


@dataclass(frozen=True)
class Quantity:
    """`value` as it stands in the file; `text` is how it reads."""

    value: int | float
    text: str


Cell: TypeAlias = "str | Quantity | tuple[str | Quantity, ...]"


@dataclass(frozen=True)
class Paragraph:
    parts: tuple[str | Quantity, ...]
    kind: str = ""
    """`note` for what is said aside"""


@dataclass(frozen=True)
class Point:
    """A line of a list. `mark` says in words how it went; `good` is None where nothing was to be shown."""

    mark: str
    parts: tuple[str | Quantity, ...]
    good: bool | None = None


@dataclass(frozen=True)
class Bullets:
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Row:
    """`kind`: `control` for the row that shows the noise."""

    cells: tuple[Cell, ...]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    caption: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Chart:
    """`name` is unique on the page. `svg` has no namespaces, no ids of another chart, and colours by variables."""

    name: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Code:
    lines: tuple[str, ...]


Block: TypeAlias = "Paragraph | Bullets | Table | Chart | Code"


@dataclass(frozen=True)
class Section:
    """`summary`: what stands at the top of the page for it."""

    title: str
    blocks: tuple[Block, ...]
    summary: tuple[Point, ...] = ()
