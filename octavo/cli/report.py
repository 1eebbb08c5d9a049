"""The verb `report`: one page from files that other verbs wrote."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from octavo.base.errors import UsageError
from octavo.cli.output import JsonTarget, check_json_target, emit

__all__ = ["ReportFlags", "read_parts", "report"]


@Parameter(name="*")
@dataclass(frozen=True)
class ReportFlags:
    inputs: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ()
    """JSON files that eval, compare, memory or demo wrote with --json (demo: its chats.json)."""
    out: str = "runs/report"
    """The folder of report.html, report.md and report.json."""
    items: str | None = None
    """A folder with the result files of eval, to show items that changed; else they are sought where the JSON says."""
    title: str = "Octavo report"
    command: tuple[str, ...] = ()
    """A command line to print under "How to reproduce"; may be given several times."""
    json: JsonTarget = None


_DEFAULTS = ReportFlags()


def report(flags: ReportFlags = _DEFAULTS) -> None:
    """One self-contained HTML page from the files of other verbs, with Markdown and JSON beside it."""
    check_json_target(flags.json)
    if not flags.inputs:
        raise UsageError("no files to report on", hint="octavo report eval.json memory.json --out runs/report")
    if flags.items is not None and not Path(flags.items).is_dir():
        raise UsageError(f"--items: there is no folder `{flags.items}`")
    parts = read_parts(flags.inputs)
    from octavo.cli.env import environment
    from octavo.evals.page import PageOptions, write_report
    from octavo.evals.page.kinds import kind_of

    kinds = {key: kind_of(data, key) for key, data in parts.items()}
    options = PageOptions(
        title=flags.title, commands=flags.command, environment=environment(),
        items=None if flags.items is None else Path(flags.items),
    )  # fmt: skip
    page = write_report(parts, Path(flags.out), options)
    files = {ending: str(page.with_suffix(f".{ending}")) for ending in ("html", "md", "json")}
    lines = [*(f"{key}: {kind}" for key, kind in kinds.items()), f"report: {', '.join(files.values())}"]
    from rich.text import Text

    emit({"parts": kinds, "files": files}, Text("\n".join(lines)), flags.json)


def read_parts(inputs: tuple[str, ...]) -> dict[str, Mapping[str, Any]]:
    """The files by name, or by path where two have the same name. Raises UsageError for what cannot be read."""
    names = [Path(given).name for given in inputs]
    found: dict[str, Mapping[str, Any]] = {}
    for given, name in zip(inputs, names, strict=True):
        key = name if names.count(name) == 1 else given
        if key in found:
            raise UsageError(f"`{given}` is given twice")
        found[key] = _read(given)
    return found


def _read(given: str) -> Any:
    try:
        return json.loads(Path(given).read_text(encoding="utf-8-sig"), parse_constant=_refuse)
    except OSError as error:
        raise UsageError(f"cannot read `{given}`: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"`{given}` is not JSON: {error}", hint="give what --json wrote, not the JSON lines of single items"
        ) from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
