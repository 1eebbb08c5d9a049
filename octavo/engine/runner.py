"""The runner acts and does not decide: a batch in, logits out, the cache written on the way."""

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from octavo.engine.batch import Batch
from octavo.engine.graphs import GraphSet
from octavo.kv.clips import ClipMeter
from octavo.kv.pool import PagePool
from octavo.models.dense import StepContext

__all__ = ["Model", "Runner"]


class Model(Protocol):
    def __call__(self, tokens: Tensor, step: StepContext, wanted: Tensor) -> Tensor: ...

    def try_products(self, rows: int, impl: str, head: bool) -> None: ...


class Runner:
    """A model, its pages, and the kernels that were chosen. Without `graphs` each step is launched kernel by kernel."""

    def __init__(self, model: Model, pool: PagePool, impl: str, check_finite: bool = False, invariant: bool = False):
        """`invariant`: kernels and model do for a token what they would do for it in any other batch, bit for bit."""
        self.model, self.pool, self.impl = model, pool, impl
        self.check_finite, self.invariant = check_finite, invariant
        self.graphs: GraphSet | None = None
        self.clips: ClipMeter | None = None

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        """Store the batch's tokens; logits `[W, vocab]` for `batch.wanted`, on a GPU of the model's own type, else
        fp32. The next run may overwrite them."""
        replayed = self.graphs is not None and self.graphs.takes(batch)
        logits = self.graphs.run(batch) if replayed and self.graphs is not None else self.forward(batch)
        if self.clips is not None:
            self.clips.watch(batch.rows.slots, prompt=batch.rows.max_query > 1)
        return logits

    def record(self, graphs: GraphSet) -> None:
        """Record decode steps; from now on they are replayed."""
        graphs.capture(self.forward)
        self.graphs = graphs

    def forward(self, batch: Batch, out: Tensor | None = None) -> Tensor:
        """As `run`, launched kernel by kernel; into `out` if it is given."""
        rows = replace(batch.rows, invariant=True) if self.invariant else batch.rows
        step = StepContext(rows, self.pool, self.impl, self.check_finite)
        logits = self.model(batch.tokens, step, batch.wanted)
        if out is not None:
            return out.copy_(logits)
        return logits if logits.is_cuda else logits.float()  # a CPU is slow to search bf16 for the largest
