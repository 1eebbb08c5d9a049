"""Blocks as HTML. Everything that comes from a file passes `escape`; only charts are put in as they are."""

import html
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from typing import Any

from octavo.base.drawing import clean
from octavo.evals.page.blocks import Block, Bullets, Cell, Chart, Code, Paragraph, Point, Quantity, Row, Section, Table

__all__ = ["escape", "page_html"]

_LONG_LETTERS, _FEW_ROWS = 60, 14

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""a browser refuses to fetch anything for this page, whatever is in it"""


def escape(text: Any) -> str:
    """Safe as text and inside quotes."""
    return html.escape(clean(text), quote=True)


def page_html(title: str, lead: str, sections: Sequence[Section], closing: str) -> str:
    """The whole page; `lead` stands under the title, `closing` at its foot."""
    style = resources.files("octavo.evals.page").joinpath("style.css").read_text(encoding="utf-8")
    anchors = [f"part-{number}" for number in range(1, len(sections) + 1)]
    links = "".join(
        f'<li><a href="#{anchor}">{escape(section.title)}</a></li>'
        for anchor, section in zip(anchors, sections, strict=True)
    )
    body = "\n".join(_section(anchor, section) for anchor, section in zip(anchors, sections, strict=True))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<header>\n<h1>{escape(title)}</h1>\n<p>{escape(lead)}</p>\n"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>\n<main>\n{_summary(anchors, sections)}{body}\n'
        f"</main>\n<footer><p>{escape(closing)}</p></footer>\n</body>\n</html>\n"
    )


def _summary(anchors: Sequence[str], sections: Sequence[Section]) -> str:
    found = [(anchor, section) for anchor, section in zip(anchors, sections, strict=True) if section.summary]
    if not found:
        return ""
    parts = "".join(
        f'<h3><a href="#{anchor}">{escape(section.title)}</a></h3>\n{_points(section.summary)}'
        for anchor, section in found
    )
    return f'<section class="summary" aria-labelledby="summary"><h2 id="summary">In short</h2>\n{parts}</section>\n'


def _section(anchor: str, section: Section) -> str:
    blocks = "\n".join(_block(block) for block in section.blocks)
    return f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{escape(section.title)}</h2>\n{blocks}\n</section>'


def _block(block: Block) -> str:
    return _RENDERERS[type(block)](block)


def _paragraph(block: Paragraph) -> str:
    kind = f' class="{escape(block.kind)}"' if block.kind else ""
    return f"<p{kind}>{_parts(block.parts)}</p>"


def _bullets(block: Bullets) -> str:
    return _points(block.points)


def _points(points: Iterable[Point]) -> str:
    kinds = {True: "shown", False: "open", None: "plain"}
    lines = "".join(
        f'<li class="{kinds[point.good]}"><strong>{escape(point.mark)}</strong> {_parts(point.parts)}</li>\n'
        for point in points
    )
    return f'<ul class="points">\n{lines}</ul>\n'


def _table(block: Table) -> str:
    classes = [_column_class([row.cells[column] for row in block.rows]) for column in range(len(block.head))]
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(block.head, classes, strict=True))
    rows = "\n".join(_row(row, classes) for row in block.rows)
    top = f"<thead><tr>{head}</tr></thead>\n" if any(block.head) else ""
    kind = "wide short" if len(block.rows) <= _FEW_ROWS else "wide"
    return (
        f'<div class="{kind}" role="region" aria-label="{escape(block.caption)}" tabindex="0"><table>'
        f"<caption>{escape(block.caption)}</caption>\n"
        f"{top}<tbody>\n{rows}\n</tbody></table></div>"
    )


def _column_class(cells: Sequence[Cell]) -> str:
    """`n` for numbers, `t` for text that needs room."""
    if any(not isinstance(cell, str) for cell in cells):
        return ' class="n"'
    return ' class="t"' if any(len(str(cell)) > _LONG_LETTERS for cell in cells) else ""


def _row(row: Row, classes: Sequence[str]) -> str:
    kind = f' class="{escape(row.kind)}"' if row.kind else ""
    cells = "".join(f"<td{style}>{_cell(cell)}</td>" for cell, style in zip(row.cells[1:], classes[1:], strict=True))
    return f'<tr{kind}><th scope="row">{_cell(row.cells[0])}</th>{cells}</tr>'


def _cell(cell: Cell) -> str:
    return _parts(cell if isinstance(cell, tuple) else (cell,))


def _parts(parts: Iterable[str | Quantity]) -> str:
    return "".join(_quantity(part) if isinstance(part, Quantity) else escape(part) for part in parts)


def _quantity(part: Quantity) -> str:
    value = escape(repr(part.value))
    return f'<data value="{value}" title="{value}">{escape(part.text)}</data>'


def _chart(block: Chart) -> str:
    caption = f"<figcaption>{escape(block.caption)}</figcaption>"
    return f'<figure id="{escape(block.name)}"><div class="chart">{block.svg}</div>{caption}</figure>'


def _code(block: Code) -> str:
    return "<pre><code>" + "\n".join(escape(line) for line in block.lines) + "</code></pre>"


_RENDERERS: dict[type, Callable[[Any], str]] = {
    Paragraph: _paragraph, Bullets: _bullets, Table: _table, Chart: _chart, Code: _code,
}  # fmt: skip
