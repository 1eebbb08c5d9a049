"""Rows of a data file, whatever its kind: JSON lines, a JSON array, CSV with a header row, Parquet."""

import csv
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from octavo.base.errors import UsageError
from octavo.base.table import Table
from octavo.calibrate.readers import import_late
from octavo.evals.tasks.lines import open_lines, open_text

__all__ = ["SUFFIXES", "Row", "read_rows", "split_name"]

Row = tuple[str, dict[str, Any]]
"""where it stands, for errors (`FILE, line 3`), and its fields"""
_KIND = re.compile(r"\.(jsonl|json|csv|parquet)(\.gz)?$", re.IGNORECASE)
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")


def split_name(name: str) -> tuple[str, str]:
    """A file's name without what says its kind, and the kind; "" where it has none of ours."""
    found = _KIND.search(name)
    return (name[: found.start()], found.group(1).lower()) if found else (name, "")


def read_rows(path: Path) -> Iterator[Row]:
    """Raises UsageError: no such file, another kind, a row that is broken (naming its line)."""
    if not path.is_file():
        raise UsageError(f"no file `{path}`")
    kind = split_name(path.name)[1]
    if not kind:
        raise UsageError(f"`{path}` is of no kind that can be read", hint=f"its name must end in {', '.join(SUFFIXES)}")
    yield from _READERS[kind](path)


def _json_lines(path: Path) -> Iterator[Row]:
    for number, row in open_lines(path):
        yield f"{path}, line {number}", row


def _json_array(path: Path) -> Iterator[Row]:
    try:
        with open_text(path) as file:
            rows = json.load(file)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise UsageError(f"{path}: {error}", hint="one object a line is .jsonl") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path}: not a list of JSON objects")
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))


def _csv(path: Path) -> Iterator[Row]:
    """Every value is text as it stands: None and NA are words."""
    reader = None
    try:
        with open_text(path, newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise UsageError(f"{where}: not the {len(reader.fieldnames or ())} columns of the header row")
                yield where, row
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path}, line {reader.reader.line_num if reader else 1}: {error}") from error


def _parquet(path: Path) -> Iterator[Row]:
    arrow = import_late("pyarrow", "pyarrow", f"`{path}`")
    parquet = import_late("pyarrow.parquet", "pyarrow", f"`{path}`")
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except (OSError, arrow.ArrowInvalid) as error:
        raise UsageError(f"{path}, row {number + 1}: {error}") from error


_READERS: Table[Callable[[Path], Iterator[Row]]] = Table(
    "kind of file", {"jsonl": _json_lines, "json": _json_array, "csv": _csv, "parquet": _parquet}
)
