"""How to get the same numbers: the commands, where they ran, and what made the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.evals.page.blocks import Block, Code, Paragraph, Row, Section, Table
from octavo.evals.page.numbers import one_line

__all__ = ["reproduce_section"]

Parts = Mapping[str, Mapping[str, Any]]
_PACKAGES = ("octavo", "torch", "numpy", "transformers")


def reproduce_section(parts: Parts, commands: Sequence[str], environment: Mapping[str, Any] | None) -> Section:
    """`commands`: in addition to those that the files name; `environment`: what `octavo env` says here."""
    lines = dict.fromkeys(one_line(line) for line in [*_given(parts), *commands])
    blocks: list[Block] = []
    if lines:
        blocks += [Paragraph(("Commands:",)), Code(tuple(lines))]
    blocks.append(_sources(parts))
    if environment:
        blocks.append(_here(environment))
    return Section("How to reproduce", tuple(blocks))


def _given(parts: Parts) -> list[str]:
    found = []
    for data in parts.values():
        given = data.get("command")
        found += [str(one) for one in given] if isinstance(given, list) else [str(given)] if given else []
    return found


def _sources(parts: Parts) -> Table:
    """Each file, and where it says that it was measured."""
    names = ("model", "device", "machine", "date", "versions")
    fields = [name for name in names if any(data.get(name) is not None for data in parts.values())]
    rows = [Row((key, *(_shown(data.get(field)) for field in fields))) for key, data in parts.items()]
    return Table("Files, and what they say of themselves", ("file", *fields), tuple(rows))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one_line(version)}" for name, version in value.items())
    return "" if value is None else one_line(value)


def _here(environment: Mapping[str, Any]) -> Table:
    packages, cpu = environment.get("packages", {}), environment.get("cpu", {})
    versions = ", ".join(f"{name} {packages[name]}" for name in _PACKAGES if packages.get(name))
    rows = [
        Row(("versions", f"{versions}, Python {environment.get('python', '?')}")),
        Row(("system", str(environment.get("platform", "?")))),
        Row(("CPU", f"{cpu.get('model', '?')}, {cpu.get('physical_cores', '?')} cores")),
    ]
    rows += [Row((str(item.get("device")), str(item.get("name")))) for item in environment.get("devices", [])]
    return Table("This page was made with", ("", ""), tuple(rows))
