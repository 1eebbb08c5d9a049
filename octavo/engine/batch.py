"""From a step plan to the tensors that the model and the kernels read."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.engine.request import Request
from octavo.engine.scheduler import Row, StepPlan
from octavo.kernels.rows import Rows

__all__ = ["Batch", "build_batch"]


@dataclass(frozen=True)
class Batch:
    """`wanted[i]` are the indices into the step's tokens whose logits belong to `readers[i]`, in order."""

    tokens: Tensor
    """int64 `[T]`"""
    rows: Rows
    wanted: Tensor
    """int64 `[W]`"""
    readers: tuple[tuple[Request, int], ...]
    """for each request whose logits are wanted: how many of the W rows are its own"""


def build_batch(plan: StepPlan, page_tokens: int, device: str) -> Batch:
    """Lay the plan's rows end to end. T tokens in all, R rows, tables padded to the longest."""
    counts = np.array([row.count for row in plan.rows], dtype=np.int32)
    computed = np.array([row.request.computed for row in plan.rows], dtype=np.int32)
    starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    tables = np.zeros((len(plan.rows), max(len(row.request.pages) for row in plan.rows)), dtype=np.int32)
    tokens: list[int] = []
    for index, row in enumerate(plan.rows):
        pages = row.request.pages
        tables[index, : len(pages)] = pages
        tokens += row.request.tokens[row.request.computed : row.request.computed + row.count]
    owner = np.repeat(np.arange(len(plan.rows)), counts)
    positions = np.arange(starts[-1]) - starts[:-1][owner] + computed[owner]
    slots = tables[owner, positions // page_tokens].astype(np.int64) * page_tokens + positions % page_tokens
    wanted, readers = _wanted(plan.rows, starts)
    rows = Rows(
        query_start=_tensor(starts, device),
        context=_tensor(computed + counts, device),
        block_tables=_tensor(tables, device),
        positions=_tensor(positions.astype(np.int64), device),
        slots=_tensor(slots, device),
        max_query=int(counts.max()),
        max_context=int((computed + counts).max()),
    )
    return Batch(
        torch.tensor(tokens, device=device), rows, torch.tensor(wanted, device=device, dtype=torch.long), readers
    )


def _wanted(rows: tuple[Row, ...], starts: np.ndarray) -> tuple[list[int], tuple[tuple[Request, int], ...]]:
    """Logits are wanted where a token will be sampled, and at every prompt position of a request that scores."""
    wanted: list[int] = []
    readers: list[tuple[Request, int]] = []
    for index, row in enumerate(rows):
        first = int(starts[index])
        if row.request.wants_prompt and row.request.computed < len(row.request.prompt):
            mine = range(first + max(0, row.request.score_from - row.request.computed), first + row.count)
        elif row.completes:
            mine = range(first + row.count - 1, first + row.count)
        else:
            continue
        if not mine:
            continue
        wanted += mine
        readers.append((row.request, len(mine)))
    return wanted, tuple(readers)


def _tensor(array: np.ndarray, device: str) -> Tensor:
    return torch.from_numpy(array).to(device)
