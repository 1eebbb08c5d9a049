"""JSON lines, plain or gzip, with the line number in every error."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from octavo.base.errors import UsageError

__all__ = ["open_lines", "open_text"]


def open_text(path: Path, newline: str | None = None) -> Any:
    """A UTF-8 file, unpacked where its name ends in .gz; a byte-order mark is dropped."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline=newline)


def open_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not blank. Raises UsageError naming the line."""
    number = 0
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = _parsed(line, f"{path}, line {number}")
                    yield number, row
    except (OSError, EOFError, ValueError, zlib.error) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path}, line {number + 1}: {error}") from error


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: {error}") from error
    if not isinstance(row, dict):
        raise UsageError(f"{where}: not a JSON object")
    return row
