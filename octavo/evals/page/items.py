"""Items whose answer changed, looked up in the result files, so that a count of flips can be read as questions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from octavo.base.errors import UsageError
from octavo.evals.compare import compare, read_results

__all__ = ["ChangedItem", "Found", "changed_items"]

_MOST = 10
Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class ChangedItem:
    """One item that two caches answer differently. `margin_*`: how far the answer was ahead of the second best."""

    id: str
    group: str
    a: str
    b: str
    change: str
    gold: str
    answer_a: str
    answer_b: str
    margin_a: float | None
    margin_b: float | None
    kl: float | None
    question: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Found:
    """`items`, or in `why_not` why there are none to show."""

    items: tuple[ChangedItem, ...] = ()
    why_not: str = ""


def changed_items(data: Mapping[str, Any], folders: Sequence[Path]) -> Found:
    """Up to ten, from all pairs in turn, those first whose baseline was surest of its answer. Files are looked for by
    name in `folders`, then where the JSON says. Shown only if their flips are those that the JSON counts."""
    files, pairs = data.get("files") or {}, [pair for pair in data["pairs"] if "gained" in pair]
    if not files or not pairs:
        return Found()
    lists = []
    read: dict[str, Results] = {}
    try:
        for pair in pairs:
            for name in (pair["a"], pair["b"]):
                path = _path(str(files.get(name, "")), folders)
                if path is None:
                    return Found(why_not=f"The result file of {name} is not there any more, so no item can be shown.")
                read[name] = read.get(name) or read_results(path)
            if not _agrees(pair, read[pair["a"]], read[pair["b"]]):
                return Found(why_not="The result files are of another run than these scores, so no item is shown.")
            lists.append(_changes(pair, read[pair["a"]], read[pair["b"]]))
    except UsageError as error:
        return Found(why_not=f"No item is shown: {error.message}.")
    turns = chain.from_iterable(zip_longest(*lists))
    return Found(tuple(item for item in turns if item is not None)[:_MOST])


def _path(given: str, folders: Sequence[Path]) -> Path | None:
    if not given:
        return None
    places = [*(folder / Path(given).name for folder in folders), Path(given)]
    return next((place for place in places if place.is_file()), None)


def _agrees(pair: Mapping[str, Any], first: Results, second: Results) -> bool:
    found = compare(first, second, (pair["a"], pair["b"]))
    counted = found.gained, found.lost, found.changed_wrong
    return counted == (pair["gained"], pair["lost"], pair["changed_wrong"])


def _changes(pair: Mapping[str, Any], first: Results, second: Results) -> list[ChangedItem]:
    found = [_item(pair, row, second[key]) for key, row in first.items() if _differ(row, second[key])]
    return sorted(found, key=lambda item: (-(item.margin_a or 0.0), item.id))


def _differ(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return before["correct"] != after["correct"] or (not after["correct"] and before["answer"] != after["answer"])


def _item(pair: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> ChangedItem:
    change = (
        "another wrong answer" if before["correct"] == after["correct"] else "gained" if after["correct"] else "lost"
    )
    return ChangedItem(
        before["id"], str(before.get("group", "")), pair["a"], pair["b"], change, str(before.get("gold", "")),
        str(before["answer"]), str(after["answer"]), _number(before.get("margin")), _number(after.get("margin")),
        _number(after.get("kl")), next(_texts(before), ""),
    )  # fmt: skip


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _texts(row: Mapping[str, Any]) -> Iterator[str]:
    """What was asked, where a result file has it."""
    yield from (str(row[name]) for name in ("question", "prompt", "context") if row.get(name))
