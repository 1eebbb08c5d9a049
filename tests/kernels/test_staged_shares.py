"""Which pages each program of a KV head gets: the kernel's own functions, run as they stand over numpy in the place of
Gluon, so that what they work out is checked without a GPU."""

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import octavo.kernels.attention as room

PAGE, LEAST = 64, 4
_IMPORT = "from triton.experimental.gluon import language as gl\n"
_SOURCE = (Path(room.__file__).parent / "triton_staged_shares.py").read_text().split(_IMPORT)[1]
CODE = compile(_SOURCE, "triton_staged_shares.py", "exec")


class Values(np.ndarray):
    """An array or a number that converts as Gluon's do."""

    def to(self, dtype: Any) -> "Values":
        return self.astype(dtype)


def values(x: Any) -> Values:
    return np.asarray(x).view(Values)


class Pointer:
    def __init__(self, memory: np.ndarray, at: Any = 0):
        self.memory, self.at = memory, at

    def __add__(self, more: Any) -> "Pointer":
        return Pointer(self.memory, self.at + more)


def number(x: Any) -> Values:
    return values(np.int32(x))


def gluon(program: int, programs: int) -> SimpleNamespace:
    """What the functions use of Gluon's language, in int32 and float32."""
    same = SimpleNamespace(constexpr=lambda x: x, BlockedLayout=lambda *args: None, int32=np.int32, float32=np.float32)
    return SimpleNamespace(
        **vars(same),
        program_id=lambda axis: number(program if axis == 1 else 0),
        num_programs=lambda axis: number(programs if axis == 1 else 8),
        static_range=range,
        arange=lambda begin, end, layout: values(np.arange(begin, end, dtype=np.int32)),
        load=lambda pointer: values(pointer.memory[pointer.at]),
        sum=lambda x, axis: values(x.sum(axis, dtype=x.dtype)),
        max=lambda x, axis: values(x.max(axis)),
        where=lambda which, x, y: values(np.where(which, x, y)),
        minimum=lambda x, y: values(np.minimum(x, y)),
        maximum=lambda x, y: values(np.maximum(x, y)),
        ceil=lambda x: values(np.ceil(x)),
        associative_scan=lambda x, axis, plus: values(np.cumsum(x, dtype=x.dtype)),
    )


def functions(program: int, programs: int) -> SimpleNamespace:
    """The module, for one program."""
    names: dict[str, Any] = {"gluon": SimpleNamespace(jit=lambda function: function), "gl": gluon(program, programs)}
    exec(CODE, names)
    return SimpleNamespace(**names)


def deal(contexts: list[int], programs: int, news: list[int] | None = None, window: int | None = None) -> list[int]:
    """Check that every page is somebody's, once, and that what programs leave is what is read when it is merged. How
    many pages each program has."""
    lengths = np.array(contexts, dtype=np.int32)
    starts = np.concatenate([[0], np.cumsum(news or [1] * len(contexts))]).astype(np.int32)
    memory, windowed = (Pointer(lengths), Pointer(starts)), (number(window or 0), PAGE)
    covered: dict[int, list[range]] = defaultdict(list)
    left: dict[int, dict[int, tuple]] = defaultdict(dict)
    loads = []
    for program in range(programs):
        its = functions(program, programs)
        cursor, end, sequence, base, dealt = its.own_share(
            *memory, 0, number(len(contexts)), *windowed, LEAST, bool(window)
        )
        loads.append(max(0, int(end - cursor)))
        while cursor < end:
            at = int(sequence)
            first_page, count = its.pages_of(*memory, at, *windowed, bool(window))
            share = its.parts_of(base, count, cursor, dealt)
            covered[at].append(range(int(first_page + cursor - base), int(first_page + min(count, end - base))))
            first, parts, _, own = (int(x) for x in share)
            assert first <= program < first + parts
            if parts > 1:
                assert own // 2 == program and own < 2 * programs
                assert own not in left[at]
                left[at][own] = tuple(int(its.part_at(part, share)) for part in range(parts))
            base += count
            cursor = base
            sequence += 1
    for at, (context, new) in enumerate(zip(contexts, news or [1] * len(contexts), strict=True)):
        first_page = max(context - new - window + 1, 0) // PAGE if window else 0
        pages = [page for run in sorted(covered[at], key=lambda run: run.start) for page in run]
        assert pages == list(range(first_page, -(-context // PAGE))), f"context {at} of {context}"
        for read in left[at].values():
            assert sorted(read) == sorted(left[at]), "what is merged is what was left"
    slots = [slot for parts in left.values() for slot in parts]
    assert len(slots) == len(set(slots)), "no two leave something in one place"
    return loads


def mixed(seed: int, count: int, longest: int) -> list[int]:
    draw = np.random.default_rng(seed)
    return sorted((draw.integers(1, longest, count, endpoint=True)).tolist(), reverse=True)


@pytest.mark.parametrize("programs", [1, 7, 33, 132])
@pytest.mark.parametrize("count", [1, 5, 8, 31, 50])
def test_every_page_is_somebodys(count: int, programs: int):
    for contexts in (
        mixed(count, count, 2500),
        mixed(count, count, 130),
        [2048] * count,
        [100_000] + [1] * (count - 1),
    ):
        deal(contexts, programs)


@pytest.mark.parametrize(("count", "programs"), [(128, 520), (129, 528), (300, 33)])
def test_more_contexts_than_are_looked_at_at_once(count: int, programs: int):
    deal(mixed(count, count, 900), programs)


def test_windows_and_several_new_tokens():
    contexts = [5000, 4097, 700, 700, 65, 64, 5, 1]
    for window in (1, 64, 500, 4096):
        for programs in (3, 33, 132):
            deal(contexts, programs, [1, 3, 2, 8, 2, 1, 4, 1], window)


def test_shares_are_even():
    """To a page, where runs are dealt; within what rounding up costs where each context is cut by itself."""
    loads = [load for load in deal(mixed(1, 50, 2500), 132) if load]
    assert max(loads) - min(loads) <= 1 and len(loads) == 132
    loads = deal([2048] * 32, 132)
    assert set(loads) == {0, 8} and loads.count(8) == 128
    for count, programs in ((8, 66), (8, 33), (1, 8), (4, 16), (16, 66)):  # each context by itself, in equal parts
        parts = min(programs // count, 32 // LEAST)
        assert max(deal([2048] * count, programs)) == -(-32 // parts)
    for seed in range(9):
        loads = deal(mixed(seed, 4 + seed, 40_000), 132)
        assert max(loads) <= 1.2 * sum(loads) / 132 + 1
    assert max(deal([64] * 40, 132)) == LEAST
