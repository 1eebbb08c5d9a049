"""From a step plan to the tensors that the model and the kernels read."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from octavo.engine.request import Request
from octavo.engine.scheduler import Row, StepPlan
from octavo.engine.transfer import to_device
from octavo.kernels.rows import Chunks, Rows

__all__ = ["Batch", "Reader", "Sampled", "build_batch"]


@dataclass(frozen=True)
class Reader:
    """A request that wants the logits of `count` positions in a row, the first of them at `position`."""

    request: Request
    count: int
    position: int
    completes: bool
    """the last of them is where its next token is sampled, or its score ends"""


@dataclass(frozen=True)
class Sampled:
    """The tokens of a step that still runs, on the device: `ids` int64 `[B]`; that of a request is at its `place`."""

    ids: Tensor
    place: Mapping[Request, int]


@dataclass(frozen=True)
class Batch:
    """`wanted[i]` are the indices into the step's tokens whose logits belong to `readers[i]`, in order."""

    tokens: Tensor
    """int64 `[T]`"""
    rows: Rows
    wanted: Tensor
    """int64 `[W]`"""
    readers: tuple[Reader, ...]
    """whose the W rows are"""


def build_batch(plan: StepPlan, page_tokens: int, device: str, sampled: Sampled | None = None) -> Batch:
    """Lay the plan's rows end to end. T tokens in all, R rows, tables padded to the longest. Tokens that the host does
    not know are taken from `sampled`, on the device. Nothing here waits for the device."""
    planned = _ordered(plan.rows)
    counts = np.array([row.count for row in planned], dtype=np.int32)
    computed = np.array([row.request.computed for row in planned], dtype=np.int32)
    starts = _laid(counts)
    tables = _tables(planned)
    owner = np.repeat(np.arange(len(planned)), counts)
    positions = np.arange(starts[-1]) - starts[:-1][owner] + computed[owner]
    slots = tables[owner, positions // page_tokens].astype(np.int64) * page_tokens + positions % page_tokens
    singles = int(np.argmax(counts != 1)) if (counts != 1).any() else len(counts)
    laid = (_laid(counts[singles:]), _laid((computed + counts)[singles:]))
    known, late = _tokens(planned, sampled)
    wanted, readers = _wanted(planned, starts.tolist())
    tokens, query_start, context, block_tables, on_device, stored, asked, targets, sources, *chunks = to_device(
        (known, starts, computed + counts, tables, positions, slots, wanted, *late, *laid), device
    )
    if sampled is not None and len(targets):
        tokens.index_copy_(0, targets, sampled.ids.index_select(0, sources))
    rows = Rows(
        query_start=query_start,
        context=context,
        block_tables=block_tables,
        positions=on_device,
        slots=stored,
        max_query=int(counts.max()),
        max_context=int((computed + counts).max()),
        singles=singles,
        chunks=Chunks(chunks[0], chunks[1], int(laid[0][-1]), int(laid[1][-1])) if singles < len(counts) else None,
    )
    return Batch(tokens, rows, asked, readers)


def _ordered(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Rows of one token first, the longest context at the head: kernels start with it, and end evenly."""
    singles = [row for row in rows if row.count == 1]
    singles.sort(key=lambda row: -row.request.computed)
    return (*singles, *(row for row in rows if row.count != 1))


def _laid(counts: np.ndarray) -> np.ndarray:
    """Where each begins when they are laid end to end, and where the last ends."""
    starts = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=starts[1:])
    return starts


def _tables(rows: tuple[Row, ...]) -> np.ndarray:
    tables = np.zeros((len(rows), max(len(row.request.pages) for row in rows)), dtype=np.int32)
    for index, row in enumerate(rows):
        pages = row.request.pages
        tables[index, : len(pages)] = pages
    return tables


def _tokens(rows: tuple[Row, ...], sampled: Sampled | None) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Token ids int64 `[T]`; and of those that are not known, which they are and their places in `sampled`."""
    tokens: list[int] = []
    targets: list[int] = []
    sources: list[int] = []
    for row in rows:
        request, begin = row.request, row.request.computed
        if begin + row.count > len(request.tokens):  # a promised token runs by itself: all before it are stored
            assert sampled is not None and row.count == 1, f"{request.id}: {row.count} tokens from {begin} are unknown"
            targets.append(len(tokens))
            sources.append(sampled.place[request])
            tokens.append(0)
        elif row.count == 1:
            tokens.append(request.tokens[begin])
        else:
            tokens += request.tokens[begin : begin + row.count]
    return np.array(tokens, dtype=np.int64), (np.array(targets, dtype=np.int64), np.array(sources, dtype=np.int64))


def _wanted(rows: tuple[Row, ...], starts: list[int]) -> tuple[np.ndarray, tuple[Reader, ...]]:
    """Logits are wanted where a token will be sampled, and at every prompt position of a request that scores."""
    wanted: list[int] = []
    readers: list[Reader] = []
    for row, first in zip(rows, starts, strict=False):
        request, end, completes = row.request, first + row.count, row.completes
        if request.wants_prompt and request.computed < len(request.prompt):
            begin = first + max(0, request.score_from - request.computed)
        elif completes:
            begin = end - 1
        else:
            continue
        if begin >= end:
            continue
        wanted.extend(range(begin, end))
        readers.append(Reader(request, end - begin, request.computed + begin - first, completes))
    return np.array(wanted, dtype=np.int64), tuple(readers)
