"""The prefix index: content hash -> page, with least-recently-used eviction. Pure: no torch.

The key of a full page is sha256 over the key of the page before it and its own tokens, so equal keys mean equal
tokens from the start of the sequence. The first key is salted with the cache plan's fingerprint (other plan, other
bytes) and, on request, with a tenant's own salt.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["PrefixHit", "PrefixIndex", "page_key", "root_key"]

Key = bytes


def root_key(fingerprint: str, salt: str = "") -> Key:
    return hashlib.sha256(f"{fingerprint}\0{salt}".encode()).digest()


def page_key(parent: Key, tokens: Sequence[int]) -> Key:
    return hashlib.sha256(parent + array("q", tokens).tobytes()).digest()


@dataclass(frozen=True)
class PrefixHit:
    """Pages whose content is the start of a sequence, in order, and the key of the last one."""

    pages: tuple[int, ...]
    keys: tuple[Key, ...]


class PrefixIndex:
    """Maps keys to pages. A page that is held stays indexed; one that is retired waits here, oldest first."""

    def __init__(self) -> None:
        self._page_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}
        self.retired: OrderedDict[int, None] = OrderedDict()
        self.queries = 0
        self.hits = 0

    def __len__(self) -> int:
        return len(self._page_of)

    def match(self, keys: Iterable[Key]) -> PrefixHit | None:
        """The longest run of leading keys that is known, or None. Takes no reference: share the pages next."""
        pages: list[int] = []
        found: list[Key] = []
        for key in keys:
            self.queries += 1
            page = self._page_of.get(key)
            if page is None:
                break
            self.hits += 1
            pages.append(page)
            found.append(key)
        return PrefixHit(tuple(pages), tuple(found)) if pages else None

    def publish(self, key: Key, page: int) -> None:
        """Page `page`, full and never written again, holds the content of `key`. The first page of a key wins."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def retire(self, page: int) -> bool:
        """Nobody holds the page any more: keep it if it is indexed. False means the caller frees it."""
        if page not in self._key_of:
            return False
        self.retired[page] = None
        return True

    def revive(self, page: int) -> None:
        """A retired page is held again."""
        del self.retired[page]

    def evict(self) -> int:
        """Forget the page that was retired longest ago and give it out."""
        page, _ = self.retired.popitem(last=False)
        del self._page_of[self._key_of.pop(page)]
        return page
