"""A state machine drives PageTable and PrefixIndex beside an independent model of who holds what."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from octavo.kv.pages import PageTable
from octavo.kv.prefix import PrefixIndex, page_key, root_key

PAGE_TOKENS = 2
TOKENS = st.lists(st.integers(0, 1), max_size=12)


def keys_of(tokens: list[int]) -> list[bytes]:
    keys, parent = [], root_key("plan")
    for start in range(0, len(tokens) - PAGE_TOKENS + 1, PAGE_TOKENS):
        parent = page_key(parent, tokens[start : start + PAGE_TOKENS])
        keys.append(parent)
    return keys


class Sequence:
    def __init__(self, tokens: list[int], pages: list[int], shared: int):
        self.tokens, self.pages, self.shared = tokens, pages, shared


class Pages(RuleBasedStateMachine):
    """The model: what each page holds (its key, once published) and which sequences hold it."""

    @initialize(num_pages=st.integers(1, 12), with_prefix=st.sampled_from([True, True, True, False]))
    def start(self, num_pages: int, with_prefix: bool) -> None:
        self.prefix = PrefixIndex() if with_prefix else None
        self.table = PageTable(num_pages, self.prefix)
        self.sequences: list[Sequence] = []
        self.content: dict[int, bytes] = {}  # page -> key of what it holds, as long as the index must know it
        self.cached: list[int] = []  # unheld pages with a content, oldest first

    def holders(self, page: int) -> int:
        return sum(sequence.pages.count(page) for sequence in self.sequences)

    def held(self) -> set[int]:
        return {page for sequence in self.sequences for page in sequence.pages}

    @rule(tokens=TOKENS)
    def admit(self, tokens: list[int]) -> None:
        """As an engine does: match, share the hit, allocate the rest, give back the hit if there is no room."""
        keys = keys_of(tokens)
        hit = self.prefix.match(keys) if self.prefix is not None else None
        shared = list(hit.pages) if hit else []
        known = {key: page for page, key in self.content.items()}
        expected = []
        for key in keys:
            if key not in known:
                break
            expected.append(known[key])
        assert shared == expected, f"the index matched {shared}, the model knows {expected}"
        self.table.share(shared)
        self.cached = [page for page in self.cached if page not in shared]
        sequence = Sequence(tokens, shared, len(shared))
        self.sequences.append(sequence)
        need = -(-len(tokens) // PAGE_TOKENS) - len(shared)
        if not self.allocate_for(sequence, need):
            self.drop(len(self.sequences) - 1)

    def allocate_for(self, sequence: Sequence, count: int) -> bool:
        held, cached = self.held(), list(self.cached)
        room = self.table.num_pages - len(held)
        assert self.table.available == room
        pages = self.table.allocate(count)
        assert (pages is not None) == (count <= room), f"{count} pages of {room}: {pages}"
        if pages is None:
            return False
        assert len(set(pages)) == count and not set(pages) & held
        evicted = [page for page in pages if page in cached]
        uncached = room - len(cached)
        assert evicted == cached[: max(count - uncached, 0)], "cached pages go last, the oldest first"
        for page in evicted:
            self.cached.remove(page)
            del self.content[page]
        sequence.pages += pages
        return True

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), more=st.lists(st.integers(0, 1), min_size=1, max_size=4))
    def grow(self, data: st.DataObject, more: list[int]) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        need = -(-(len(sequence.tokens) + len(more)) // PAGE_TOKENS) - len(sequence.pages)
        if self.allocate_for(sequence, need):
            sequence.tokens = sequence.tokens + more

    @precondition(lambda self: self.sequences and self.prefix is not None)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        """A sequence's full pages become known, in order."""
        assert self.prefix is not None
        sequence = data.draw(st.sampled_from(self.sequences))
        for key, page in zip(keys_of(sequence.tokens), sequence.pages, strict=False):
            self.prefix.publish(key, page)
            if key not in self.content.values() and page not in self.content:
                self.content[page] = key

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.drop(data.draw(st.integers(0, len(self.sequences) - 1)))

    def drop(self, index: int) -> None:
        sequence = self.sequences.pop(index)
        self.table.release(sequence.pages)
        for page in reversed(sequence.pages):
            if self.holders(page) == 0 and page in self.content:
                self.cached.append(page)

    @rule(excess=st.integers(1, 12))
    def too_many_takes_nothing(self, excess: int) -> None:
        before = self.table.available
        assert self.table.allocate(before + excess) is None
        assert self.table.available == before

    @invariant()
    def table_agrees_with_the_model(self) -> None:
        if not hasattr(self, "table"):
            return
        self.table.check()
        for page in range(self.table.num_pages):
            assert self.table.references(page) == self.holders(page)
        assert self.table.held == len(self.held())
        if self.prefix is not None:
            assert list(self.prefix.retired) == self.cached
            assert len(self.prefix) == len(self.content)

    def teardown(self) -> None:
        while getattr(self, "sequences", []):
            self.drop(0)
            self.table.check()
        if hasattr(self, "table"):
            assert self.table.available == self.table.num_pages and self.table.held == 0


TestPages = Pages.TestCase
TestPages.settings = settings(max_examples=120, stateful_step_count=80, deadline=None)
