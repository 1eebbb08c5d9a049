"""Reads a page of the report as a strict browser would, and checks what holds for every page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "link", "br", "img", "hr", "input"}
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "p", "nav", "ul", "li", "a", "main",
    "section", "div", "table", "caption", "thead", "tbody", "tr", "th", "td", "data", "strong", "figure", "figcaption",
    "pre", "code", "footer", "svg", "g", "path", "use", "defs", "text", "tspan", "rect", "clippath", "pattern",
}  # fmt: skip
"""every element that our own code writes: one more would come from a file"""


class Page(HTMLParser):
    """Tags that open and close as they should, with what a test wants to look at."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag} has an attribute twice"
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def values(self, name: str) -> list[str]:
        return [value for _, found, value in self.attributes if found == name]

    def row(self, first: str) -> list[list[str]]:
        return [row[1:] for row in self.rows if row[0] == first]


def numbers_of(data: Any) -> set[str]:
    if isinstance(data, dict | list):
        return set().union(*map(numbers_of, data.values() if isinstance(data, dict) else data))
    return {repr(data)} if isinstance(data, int | float) and not isinstance(data, bool) else set()


def check(path: Path) -> Page:
    """What holds for every page."""
    page = Page(path)
    assert page.tags <= ALLOWED, page.tags - ALLOWED
    assert "://" not in page.source and "@import" not in page.source
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "src"]
    ids, links = page.values("id"), page.values("href")
    assert len(set(ids)) == len(ids)
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    assert set(re.findall(r"url\(#([^)]+)\)", page.source)) <= set(ids)
    assert page.source.count("url(") == page.source.count("url(#")
    shown = set(page.values("value"))
    assert shown <= numbers_of(json.loads(path.with_suffix(".json").read_text())), "a number that no file has"
    return page
