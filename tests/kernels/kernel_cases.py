"""Hand-made paged sequences: pools full of 0xFF, shuffled pages, block tables with garbage past their end."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.kernels.rows import Rope, Rows
from octavo.kernels.store import store
from octavo.kv.plan import Rotate, uniform_plan
from octavo.kv.pool import LayerPages, PagePool
from octavo.kv.schemes import SCHEMES
from octavo.kv.transform import SideTransform

_NAMES = list(SCHEMES)
PAIRS = ["int8,int4", *(f"{name},{name}" for name in _NAMES)]
"""every scheme of the table, in the pairs that the tests of the engine compile too: a kernel takes seconds"""
GARBAGE_PAGE = 2**31 - 1


@dataclass(frozen=True)
class Sequences:
    """Sequences of `contexts` tokens in one layer's pages."""

    layer: LayerPages
    contexts: tuple[int, ...]
    tables: Tensor

    def rows(self, new: tuple[int, ...], which: tuple[int, ...] | None = None, back: int = 0) -> Rows:
        """A step that brings the last `new[r]` tokens of each sequence, after `back` were taken off their ends."""
        chosen = range(len(self.contexts)) if which is None else which
        ends = [self.contexts[r] - back for r in chosen]
        tables, page_tokens = self.tables[list(chosen)].contiguous(), self.layer.layout.page_tokens
        runs = [torch.arange(end - n, end) for end, n in zip(ends, new, strict=True)]
        slots = [
            table.long()[run // page_tokens] * page_tokens + run % page_tokens
            for table, run in zip(tables, runs, strict=True)
        ]
        starts = torch.tensor([0, *new]).cumsum(0).int()
        context = torch.tensor(ends, dtype=torch.int32)
        return Rows(starts, context, tables, torch.cat(runs), torch.cat(slots), max(new), max(ends))


def make_sequences(
    dtype: str, contexts: tuple[int, ...], kv_heads: int, head_dim: int, rotate: Rotate = "auto", page_tokens: int = 64
) -> Sequences:
    plan = uniform_plan(dtype, 1, head_dim, rotate)
    need = [-(-context // page_tokens) for context in contexts]
    pool = PagePool(plan, plan.layouts(kv_heads, head_dim, page_tokens), sum(need) + 2, "cpu", fill=0xFF)
    pages = torch.randperm(pool.num_pages, generator=torch.Generator().manual_seed(3)).int()
    tables = torch.full((len(contexts), max(need) + 1), GARBAGE_PAGE, dtype=torch.int32)
    for row, (count, begin) in enumerate(zip(need, torch.tensor([0, *need]).cumsum(0).tolist(), strict=False)):
        tables[row, :count] = pages[begin : begin + count]
    return Sequences(pool.layers[0], contexts, tables)


def fitted(sequences: Sequences, key: SideTransform, value: SideTransform) -> Sequences:
    """The same pages with other transforms of what is stored in them."""
    return replace(sequences, layer=replace(sequences.layer, key=key, value=value))


def random_vectors(tokens: int, heads: int, head_dim: int, seed: int) -> Tensor:
    """With a few large dimensions, as keys have."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(tokens, heads, head_dim, generator=generator)
    return vectors * (1 + 8 * (torch.arange(head_dim) % 17 == 3))


def make_rope(positions: int, width: int) -> Rope:
    angles = torch.arange(positions)[:, None] * 10000.0 ** -(torch.arange(width) / width)
    return Rope(angles.cos().contiguous(), angles.sin().contiguous())


def fill(sequences: Sequences, seed: int = 0) -> None:
    """Store every token of every sequence with the reference."""
    layout, rows = sequences.layer.layout, sequences.rows(sequences.contexts)
    k, v = (random_vectors(len(rows.slots), layout.kv_heads, layout.head_dim, seed + i) for i in range(2))
    store(k, k, v, None, rows, sequences.layer, "reference")
