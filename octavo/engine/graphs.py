"""Decode steps as CUDA graphs: the launches of a whole step recorded once per batch size and replayed at once.

A graph reads fixed addresses, so a batch is copied into buffers that never move. A batch between two sizes is padded:

    [0, count)      its rows, one token each
    [count, size)   padding: stores nowhere (slot -1) and attends to one token of some page; nobody reads its logits

The grid of a launch is fixed as well. It is made for the longest context; kernels read the real one from the device.
"""

import logging
import time
from typing import Protocol

import torch
from torch import Tensor

from octavo.engine.batch import Batch
from octavo.kernels.inputs import DecodeInputs, bring
from octavo.kernels.rows import Rows

__all__ = ["DecodeBuffers", "GraphSet", "ladder"]

log = logging.getLogger("octavo")

_MOST_ROWS = 512


class Forward(Protocol):
    def __call__(self, batch: Batch, out: Tensor | None = None) -> Tensor: ...


def ladder(most: int) -> tuple[int, ...]:
    """The batch sizes to record for up to `most` rows, dense where one row more costs much. More than 512 run eager."""
    most = min(most, _MOST_ROWS)
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, _MOST_ROWS, 32)]
    return (*(size for size in sizes if size < most), most)


class DecodeBuffers:
    """The inputs of a decode step of up to `most` rows, at addresses that never change."""

    def __init__(self, most: int, longest: int, page_tokens: int, device: str, impl: str):
        """`impl`: which kernels bring the inputs here."""
        self.longest, self.impl = longest, impl
        self.inputs = DecodeInputs(
            tokens=torch.zeros(most, dtype=torch.int64, device=device),
            positions=torch.zeros(most, dtype=torch.int64, device=device),
            slots=torch.full((most,), -1, dtype=torch.int64, device=device),
            context=torch.ones(most, dtype=torch.int32, device=device),
            tables=torch.zeros(most, -(-longest // page_tokens), dtype=torch.int32, device=device),
        )
        self.starts = torch.arange(most + 1, dtype=torch.int32, device=device)
        self.wanted = torch.arange(most, device=device)

    def batch(self, size: int) -> Batch:
        """The first `size` rows as a batch: views, so it is as `fill` last left them."""
        own = self.inputs
        rows = Rows(
            self.starts[: size + 1], own.context[:size], own.tables[:size], own.positions[:size], own.slots[:size],
            max_query=1, max_context=self.longest,
        )  # fmt: skip
        return Batch(own.tokens[:size], rows, self.wanted[:size], ())

    def fill(self, batch: Batch, size: int) -> None:
        """Copy a batch of one token a row in, and make padding of the rows up to `size`."""
        rows = batch.rows
        given = DecodeInputs(batch.tokens, rows.positions, rows.slots, rows.context, rows.block_tables)
        bring(given, self.inputs, size, self.impl)


class GraphSet:
    """One graph for each size; they share their memory, since only one runs at a time."""

    def __init__(self, sizes: tuple[int, ...], buffers: DecodeBuffers):
        self.sizes, self.buffers = sizes, buffers
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._logits: Tensor | None = None

    def takes(self, batch: Batch) -> bool:
        """Whether every row has one token and there is a graph for as many."""
        rows = len(batch.rows.context)
        return batch.rows.max_query == 1 and len(batch.tokens) == rows and self.size_for(rows) is not None

    def size_for(self, rows: int) -> int | None:
        return next((size for size in self.sizes if size >= rows), None)

    @torch.inference_mode()
    def capture(self, forward: Forward) -> None:
        """Record `forward` for every size, the largest first so that the others fit into its memory."""
        begin, device = time.perf_counter(), self.buffers.starts.device
        stream, pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        stream.wait_stream(torch.cuda.current_stream(device))
        for size in reversed(self.sizes):
            batch = self.buffers.batch(size)
            with torch.cuda.stream(stream):
                logits = forward(batch)  # what kernels and libraries allocate once must exist before the recording
            if self._logits is None:
                self._logits = torch.empty_like(logits)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                forward(batch, self._logits[:size])
            self._graphs[size] = graph
        torch.cuda.current_stream(device).wait_stream(stream)
        self.buffers.fill(self.buffers.batch(1), 1)  # what compiles must have compiled
        log.info("recorded decode steps of %d batch sizes (%.1f s)", len(self.sizes), time.perf_counter() - begin)

    def run(self, batch: Batch) -> Tensor:
        """Logits `[W, vocab]` of a batch that `takes` accepts. The next replay overwrites them."""
        count = len(batch.tokens)
        size = self.size_for(count)
        assert size is not None and self._logits is not None, f"no graph for {count} rows, have {self.sizes}"
        self.buffers.fill(batch, size)
        self._graphs[size].replay()
        logits = self._logits[:count]
        return logits if len(batch.wanted) == count else logits[batch.wanted]
