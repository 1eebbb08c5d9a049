"""Which verb wrote a file, by what is in it, and whether what the page needs of it is there and of the right type."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.base.errors import UsageError
from octavo.base.table import Table

__all__ = ["KINDS", "Kind", "kind_of"]

Data = Mapping[str, Any]
Wanted = Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_interval(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))


def _or_none(wanted: Wanted) -> Wanted:
    return lambda value: value is None or wanted(value)


def _list_of(**fields: Wanted) -> Wanted:
    return lambda value: isinstance(value, list | tuple) and all(_has(part, fields) for part in value)


def _dict_of(**fields: Wanted) -> Wanted:
    return lambda value: isinstance(value, Mapping) and all(_has(part, fields) for part in value.values())


def _has(part: Any, fields: Mapping[str, Wanted]) -> bool:
    return isinstance(part, Mapping) and all(name in part and wanted(part[name]) for name, wanted in fields.items())


_POSITIONS = _list_of(begin=_is_number, end=_is_number, mean=_is_number)
_NAMES = {"a": _is_text, "b": _is_text}
_CHOICE = _NAMES | {
    "gained": _is_number, "lost": _is_number, "changed_wrong": _is_number, "difference": _is_number,
    "ci95": _is_interval,
}  # fmt: skip
_TEXT = _NAMES | {"nll_difference": _is_number, "nll_difference_ci95": _is_interval}


def _is_pair(value: Any) -> bool:
    if not _has(value, _CHOICE) and not _has(value, _TEXT):
        return False
    buckets = value.get("kl_by_position")
    return (buckets is None or _POSITIONS(buckets)) and _or_none(_is_number)(value.get("margin"))


def _is_pairs(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_pair, value))


@dataclass(frozen=True)
class Kind:
    """`needs`: keys that only this verb writes together, and what each must be; `may`: keys that need not be there."""

    verb: str
    needs: Mapping[str, Wanted]
    may: Mapping[str, Wanted]

    def problems(self, data: Data) -> Iterator[str]:
        checks = [(name, wanted) for name, wanted in [*self.needs.items(), *self.may.items()] if name in data]
        yield from (name for name, wanted in checks if not wanted(data[name]))


def _are_rows(value: Any) -> bool:
    rows = _list_of(batch=_is_number, dtype=_is_text, process_mib=_is_number)
    return rows(value) and all(_or_none(_is_number)(row.get("device_mib")) for row in value)


def _is_run(value: Any) -> bool:
    return _has(value, {"dtype": _is_text})


KINDS: Table[Kind] = Table(
    "kind of file",
    {
        "eval": Kind(
            "octavo eval, octavo compare",
            {"scores": _dict_of(), "pairs": _is_pairs},
            {"control": _or_none(_is_pair), "files": _or_none(lambda value: isinstance(value, Mapping))},
        ),
        "memory": Kind(
            "octavo memory",
            {
                "model": _is_text, "tokens": _is_number,
                "rows": _are_rows,
            },
            {
                "skipped": _list_of(batch=_is_number, dtype=_is_text),
                "law": _dict_of(slope_mib=_is_number, intercept_mib=_is_number),
                "lines": _dict_of(slope_mib=_is_number, intercept_mib=_is_number),
                "crossings": _list_of(first=_is_text, second=_is_text, batch=_is_number),
            },
        ),
        "demo": Kind(
            "octavo demo",
            {
                "baseline": _is_run, "folded": _is_run, "divergence": lambda value: isinstance(value, Mapping),
                "answers": _list_of(prompt=_is_text, baseline=_is_text, folded=_is_text),
            },
            {"control": _or_none(lambda value: isinstance(value, Mapping))},
        ),
    },
)  # fmt: skip


def kind_of(data: Any, where: str) -> str:
    """The name of the kind. Raises UsageError for what no verb wrote, and for what is damaged."""
    if not isinstance(data, Mapping):
        raise UsageError(f"{where}: a {type(data).__name__} and not an object", hint=_hint())
    for name, kind in KINDS.items():
        if kind.needs.keys() <= data.keys():
            wrong = next(kind.problems(data), None)
            if wrong is not None:
                raise UsageError(
                    f"{where}: looks like a file of {kind.verb}, but `{wrong}` is not as it writes it",
                    hint="make the file again, or give the one that was not edited",
                )
            return name
    keys = ", ".join(f"`{key}`" for key in list(data)[:6]) or "no keys"
    raise UsageError(f"{where}: no file that the report knows (it has {keys})", hint=_hint())


def _hint() -> str:
    return "give the files that --json wrote: " + "; ".join(kind.verb for kind in KINDS.values())
