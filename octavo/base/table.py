"""The one registry type: a table of named choices whose misses suggest the nearest name."""

import difflib
from collections.abc import Iterator, Mapping
from typing import TypeVar

from octavo.base.errors import UnknownChoice

__all__ = ["Table"]

Entry = TypeVar("Entry")


class Table(Mapping[str, Entry]):
    """Read-mostly mapping from name to entry. `aliases` maps what people type elsewhere to a name."""

    def __init__(self, what: str, entries: Mapping[str, Entry], aliases: Mapping[str, str] | None = None):
        self.what = what
        self._entries = dict(entries)
        self._aliases = dict(aliases or {})

    def __getitem__(self, name: str) -> Entry:
        key = self.resolve(name)
        return self._entries[key]

    def resolve(self, name: str) -> str:
        """The table's own name for `name`. Raises UnknownChoice, with the nearest name as a hint."""
        key = self._aliases.get(name, name)
        if key in self._entries:
            return key
        near = difflib.get_close_matches(str(name), [*self._entries, *self._aliases], n=1, cutoff=0.5)
        raise UnknownChoice(
            f"unknown {self.what}: `{name}` (have {', '.join(self._entries)})",
            hint=f"did you mean `{near[0]}`?" if near else None,
        )

    def add(self, name: str, entry: Entry) -> None:
        """Add an entry; a name that is taken is an error."""
        if name in self._entries:
            raise UnknownChoice(f"{self.what} `{name}` is already defined")
        self._entries[name] = entry

    def remove(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._aliases

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
