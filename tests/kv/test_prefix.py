"""Prefix keys and the index: equal keys mean equal tokens from the start under one plan."""

from octavo.kv.prefix import PrefixIndex, page_key, root_key


def chain(tokens: list[int], page_tokens: int = 4, fingerprint: str = "plan", salt: str = "") -> list[bytes]:
    keys, parent = [], root_key(fingerprint, salt)
    for start in range(0, len(tokens) - page_tokens + 1, page_tokens):
        parent = page_key(parent, tokens[start : start + page_tokens])
        keys.append(parent)
    return keys


def test_keys_depend_on_everything_before_them():
    base = chain([1, 2, 3, 4, 5, 6, 7, 8])
    assert base == chain([1, 2, 3, 4, 5, 6, 7, 8])
    other = chain([9, 2, 3, 4, 5, 6, 7, 8])
    assert base[0] != other[0] and base[1] != other[1]
    assert chain([1, 2, 3, 4, 5, 6, 7, 9])[0] == base[0]


def test_keys_are_salted_by_plan_and_tenant():
    tokens = [1, 2, 3, 4]
    keys = {chain(tokens, fingerprint=f, salt=s)[0] for f in ("int8", "int4") for s in ("", "tenant")}
    assert len(keys) == 4
    assert root_key("a", "b") != root_key("ab")


def test_tokens_do_not_run_into_each_other():
    assert page_key(b"", [1, 23]) != page_key(b"", [12, 3])
    assert page_key(b"", [256]) != page_key(b"", [1, 0])
    page_key(b"", [2**40, 0])


def test_match_is_the_longest_leading_run():
    index, keys = PrefixIndex(), chain(list(range(16)))
    assert index.match(keys) is None
    for page, key in enumerate(keys):
        if page != 2:
            index.publish(key, page)
    hit = index.match(keys)
    assert hit is not None and hit.pages == (0, 1) and hit.keys == tuple(keys[:2])
    assert (index.queries, index.hits) == (4, 2)
    assert index.match([]) is None


def test_first_page_of_a_key_wins():
    index, (key, other) = PrefixIndex(), chain(list(range(8)))
    index.publish(key, 5)
    index.publish(key, 6)
    index.publish(other, 5)
    hit = index.match([key, other])
    assert hit is not None and hit.pages == (5,)
    assert len(index) == 1
    assert not index.retire(6)


def test_eviction_is_oldest_first():
    index, keys = PrefixIndex(), chain(list(range(12)))
    for page, key in enumerate(keys):
        index.publish(key, page)
        assert index.retire(page)
    index.revive(0)
    assert index.retire(0)
    assert [index.evict() for _ in keys] == [1, 2, 0]
    assert len(index) == 0 and index.match(keys) is None
