"""Who owns which page. Pure arithmetic over page ids: no torch, no schemes, no tensors.

A page is in exactly one of three states, and `PageTable` is the only code that moves it:

    free      nobody holds it, its content is worthless
    held      one or more sequences hold it (reference count >= 1); shared pages are full and read only
    cached    nobody holds it, but the prefix index knows its content: given out last, oldest first
"""

from collections import deque
from collections.abc import Iterable

from octavo.kv.prefix import PrefixIndex

__all__ = ["PageTable"]


class PageTable:
    """Allocates, shares and frees pages. `prefix` keeps released pages that have a known content."""

    def __init__(self, num_pages: int, prefix: PrefixIndex | None = None):
        self.num_pages = num_pages
        self.prefix = prefix
        self._free: deque[int] = deque(range(num_pages))
        self._references = [0] * num_pages
        self._held = 0

    @property
    def available(self) -> int:
        """Pages that `allocate` can give: free ones and cached ones."""
        return self.num_pages - self._held

    @property
    def held(self) -> int:
        return self._held

    def references(self, page: int) -> int:
        return self._references[page]

    def allocate(self, count: int) -> list[int] | None:
        """`count` fresh pages, each with one reference, or None if there are not that many (nothing is taken)."""
        if count > self.available:
            return None
        pages = [self._free.popleft() if self._free else self._evict() for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        self._held += count
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """One more reference to each page of a prefix hit (held by others, or cached)."""
        for page in pages:
            if self._references[page] == 0:
                assert self.prefix is not None, f"page {page} is free and cannot be shared"
                self.prefix.revive(page)
                self._held += 1
            self._references[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Give up one reference to each page. Last pages first, so that a prefix outlives its continuation."""
        for page in reversed(list(pages)):
            assert self._references[page] > 0, f"page {page} is released but nobody holds it"
            self._references[page] -= 1
            if self._references[page] == 0:
                self._held -= 1
                if self.prefix is None or not self.prefix.retire(page):
                    self._free.append(page)

    def _evict(self) -> int:
        assert self.prefix is not None, "no free page and no prefix index to evict from"
        return self.prefix.evict()

    def check(self) -> None:
        """The invariant: held + free + cached = total, and no page is in two places. Raises AssertionError."""
        cached = set(self.prefix.retired) if self.prefix is not None else set()
        free = set(self._free)
        held = {page for page, count in enumerate(self._references) if count > 0}
        assert len(free) == len(self._free), "a page is on the free list twice"
        assert not (free & cached or free & held or cached & held), "a page is in two states at once"
        assert len(free) + len(cached) + len(held) == self.num_pages, (
            f"page leak: {len(held)} held + {len(free)} free + {len(cached)} cached != {self.num_pages}"
        )
        assert len(held) == self._held, f"{len(held)} pages are held, the count says {self._held}"
