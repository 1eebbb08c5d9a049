"""Examples before a question: the first of the development questions, never the question itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from octavo.base.errors import UsageError
from octavo.base.log import log

__all__ = ["Asked", "development_data", "shots_for"]

_MOST = 64


class Asked(Protocol):
    @property
    def text(self) -> str: ...
    @property
    def group(self) -> str: ...


One = TypeVar("One", bound=Asked)


def development_data(data: str | None, examples: str | None, shots: int) -> str | None:
    """What to read examples from: `examples`, else the folder or archive of the data, else the hub (None). Raises
    UsageError where `data` is a single file, which says nothing of others."""
    if not 0 <= shots <= _MOST:
        raise UsageError(f"shots: {shots} (0 to {_MOST})")
    if examples is not None or data is None:
        return examples
    path = Path(data).expanduser()
    if path.is_file() and path.suffix != ".zip":
        raise UsageError(
            f"examples come from development questions, and `{data}` is a single file",
            hint="name their file with --examples, or a folder that has both with --data",
        )
    return data


def shots_for(questions: Sequence[One], examples: Sequence[One], shots: int) -> list[list[One]]:
    """For each question the first `shots` examples, of its own group where examples have groups.

    An example that asks the same (the same words, whatever their case) is left out before that question and the next
    one taken, so such a question may have fewer; how many questions that was is logged. Raises UsageError where a group
    has too few."""
    grouped = any(one.group for one in examples)
    pools: dict[str, list[One]] = {}
    for one in examples:
        pools.setdefault(one.group if grouped else "", []).append(one)
    found, met = [], 0
    for question in questions:
        pool = pools.get(question.group if grouped else "", [])
        if len(pool) < shots:
            of = f" of {question.group}" if grouped else ""
            raise UsageError(f"{shots} shots, and there are {len(pool)} examples{of}", hint="use fewer --shots")
        words = _words(question)
        others = [one for one in pool[: shots + 1] if _words(one) != words]
        met += len(others) < len(pool[: shots + 1])
        found.append(others[:shots])
    if met:
        log.warning("%d questions are among their own examples: these were left out before them", met)
    return found


def _words(one: Asked) -> str:
    return " ".join(one.text.lower().split())
