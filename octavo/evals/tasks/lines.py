"""JSON lines, plain or gzip: questions of the user's own."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from octavo.base.errors import UsageError
from octavo.evals.tasks.questions import LABELS, Question

__all__ = ["open_lines", "read_questions"]


def open_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not blank. Raises UsageError naming the line."""
    number = 0
    try:
        opener: Any = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = _parsed(line, f"{path}, line {number}")
                    yield number, row
    except (OSError, EOFError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path}, line {number + 1}: {error}") from error


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error
    if not isinstance(row, dict):
        raise UsageError(f"{where}: not a JSON object")
    return row


def read_questions(path: Path, name: str) -> list[Question]:
    """Rows with `question` (or `query`, `goal`), `choices` (or `options`), and `answer` (or `gold`, `label`): an index
    from 0, a letter, or the option's text. `id` and `group` (or `subject`) may be there. Raises UsageError."""
    found = []
    for number, row in open_lines(path):
        where = f"{path}, line {number}"
        text = _first(row, ("question", "query", "goal", "context"), where)
        options = tuple(str(option) for option in _first(row, ("choices", "options", "endings"), where))
        gold = _gold(_first(row, ("answer", "gold", "label"), where), options, where)
        group = str(row.get("group", row.get("subject", "")))
        found.append(Question(f"{name}/{row.get('id', number - 1)}", group, str(text), options, gold))
    if len({one.id for one in found}) < len(found):
        raise UsageError(f"{path}: two rows have the same id")
    return found


def _first(row: dict[str, Any], names: tuple[str, ...], where: str) -> Any:
    for name in names:
        if name in row:
            return row[name]
    raise UsageError(f"{where}: none of {', '.join(names)}")


def _gold(answer: Any, options: tuple[str, ...], where: str) -> int:
    text = str(answer).strip()
    if isinstance(answer, int) and 0 <= answer < len(options):
        return answer
    if text in options:
        return options.index(text)
    if len(text) == 1 and 0 <= LABELS.find(text.upper()) < len(options):
        return LABELS.index(text.upper())
    if text.isdigit() and int(text) < len(options):
        return int(text)
    raise UsageError(f"{where}: the answer `{answer}` is none of {len(options)} options")
