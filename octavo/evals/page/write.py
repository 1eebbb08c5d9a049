"""From the files of the verbs to a folder with report.html, report.md and report.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.base.errors import UsageError
from octavo.evals.page.blocks import Section
from octavo.evals.page.demo_section import demo_section
from octavo.evals.page.eval_section import eval_section
from octavo.evals.page.html import page_html
from octavo.evals.page.items import Found, changed_items
from octavo.evals.page.kinds import KINDS, kind_of
from octavo.evals.page.markdown import page_markdown
from octavo.evals.page.memory_section import memory_section
from octavo.evals.page.reproduce import reproduce_section

__all__ = ["PageOptions", "write_report"]

Parts = Mapping[str, Mapping[str, Any]]
_ORDER = ("memory", "eval", "demo")


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """`commands`: how the parts were made, where they do not say so; `environment`: what `octavo env` says; `items`: a
    folder with result files, where they are not where the JSON of an evaluation says; `name`: of the three files."""

    title: str = "Octavo report"
    commands: tuple[str, ...] = ()
    environment: Mapping[str, Any] | None = None
    items: Path | None = None
    name: str = "report"


def write_report(parts: Parts, folder: Path, options: PageOptions | None = None) -> Path:
    """Write NAME.html, NAME.md and NAME.json into `folder`, which is made, and return the path of the HTML. `parts`:
    what to call a file -> its JSON. Nothing is written unless all of it is good. Raises UsageError."""
    options = options or PageOptions()
    if not parts:
        raise UsageError("a report of nothing", hint=f"give files of {', '.join(kind.verb for kind in KINDS.values())}")
    kinds = {key: kind_of(data, key) for key, data in parts.items()}
    ordered = {key: parts[key] for kind in _ORDER for key in parts if kinds[key] == kind}
    folders = [options.items] if options.items is not None else []
    items = {key: changed_items(data, folders) for key, data in ordered.items() if kinds[key] == "eval"}
    sections = [
        _section(f"{kinds[key]}-{number}", kinds[key], data, items.get(key, Found()))
        for number, (key, data) in enumerate(ordered.items(), 1)
    ]
    sections.append(reproduce_section(ordered, options.commands, options.environment))
    lead = "Made from " + ", ".join(ordered) + "."
    closing = f"Every number is one of {options.name}.json; point at one to see all its digits."
    data = {
        "title": options.title, "commands": list(options.commands), "environment": options.environment,
        "parts": ordered, "items": {key: [item.as_dict() for item in found.items] for key, found in items.items()},
    }  # fmt: skip
    files = {
        "html": page_html(options.title, lead, sections, closing),
        "md": page_markdown(options.title, lead, sections, f"Every number is one of {options.name}.json."),
        "json": json.dumps(data, indent=1) + "\n",
    }
    return _write(folder, options.name, files)


def _section(key: str, kind: str, data: Mapping[str, Any], found: Found) -> Section:
    makers = {
        "eval": lambda: eval_section(key, data, found),
        "memory": lambda: memory_section(key, data),
        "demo": lambda: demo_section(data),
    }
    return makers[kind]()


def _write(folder: Path, name: str, files: Mapping[str, str]) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for ending, text in files.items():
            (folder / f"{name}.{ending}").write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write into `{folder}`: {error.strerror}", hint="name another folder") from error
    return folder / f"{name}.html"
