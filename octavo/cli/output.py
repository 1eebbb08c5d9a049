"""What verbs print: a table for people on stdout, JSON for machines where `--json` says, errors on stderr."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from octavo.base.errors import UsageError

__all__ = ["JsonTarget", "check_json_target", "emit", "print_error", "progress_bar", "write_json"]

JsonTarget = Annotated[
    str | None,
    Parameter(name="--json", allow_leading_hyphen=True, help="Write the result as JSON to this file; - is stdout."),
]
"""The type of every verb's `json` option"""


def print_error(message: str, hint: str | None = None) -> None:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


def check_json_target(target: str | None) -> None:
    """Fail now rather than after minutes of work if the file cannot be written. Raises UsageError."""
    if target is None or target == "-":
        return
    if target == "" or target.startswith("-"):
        raise UsageError(f"--json needs a file, not `{target}`", hint="--json - writes to stdout")
    path = Path(target)
    if path.is_dir():
        raise UsageError(f"cannot write `{target}`: it is a folder", hint="--json takes a file, or - for stdout")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write `{target}`: there is no folder `{path.parent}`")


def write_json(data: Mapping[str, Any], target: str) -> None:
    """Write `data` to the file `target` (`-` is stdout). Raises UsageError if the system refuses."""
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    check_json_target(target)
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write `{target}`: {error.strerror}") from error


def emit(data: Mapping[str, Any], people: Any, target: str | None) -> None:
    """Print `people` (anything rich can print) and write `data` where `--json` says; with `-`, only the JSON."""
    if target is not None:
        write_json(data, target)
    if target != "-":
        from rich.console import Console

        # a pipe or a file has no width of its own: wide enough for any table of ours, unless the user says
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
        console = Console(width=width, highlight=False)
        with console.capture() as text:  # rich would end the process by itself on a broken pipe
            console.print(people)
        sys.stdout.write(text.get())


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for each named part of a long job: call it with (part, steps done, steps in all)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        parts: dict[str, Any] = {}

        def advance(part: str, done: int, total: int) -> None:
            if part not in parts:
                parts[part] = bars.add_task(part, total=total)
            bars.update(parts[part], completed=done, total=total)

        yield advance
