"""What a GPU has done before the first request: compiled its kernels, told what it needs, recorded its decode steps."""

from dataclasses import dataclass, replace

import torch

from octavo.base import device as hardware
from octavo.base.errors import CapacityError
from octavo.engine.graphs import DecodeBuffers, GraphSet, ladder
from octavo.engine.largest_step import StepLimits, measure_room, run_largest
from octavo.engine.options import EngineOptions
from octavo.engine.pool_size import Room
from octavo.engine.runner import Runner
from octavo.engine.warm_up import load_products, variants, warm_up
from octavo.kernels.choice import KernelChoice
from octavo.models.spec import ModelSpec

__all__ = ["Preparation"]


@dataclass(frozen=True)
class Preparation:
    """`try_out` over a small pool says what steps need; `make_ready` over the real one leaves nothing to allocate."""

    spec: ModelSpec
    limits: StepLimits
    kernels: KernelChoice
    graph_sizes: tuple[int, ...]

    @classmethod
    def of(cls, options: EngineOptions, spec: ModelSpec, kernels: KernelChoice, longest: int) -> "Preparation":
        eager = options.enforce_eager or options.debug or options.deterministic
        limits = StepLimits(options.max_num_batched_tokens, options.max_num_seqs, longest, options.block_size)
        sizes = ladder(limits.sequences) if kernels.graphs and not eager else ()
        return cls(spec, limits, kernels, sizes)

    def shorter(self, longest: int) -> "Preparation":
        return replace(self, limits=replace(self.limits, longest=longest))

    def try_out(self, runner: Runner, dtype: torch.dtype) -> Room:
        """`dtype`: of the model. Raises CapacityError if steps do not fit beside the weights."""
        try:
            self._warm_up(runner, hardware.physical_cores() if self.kernels.impl == "triton" else None)
            load_products(runner, self.limits.tokens, self.limits.sequences)
            room = measure_room(runner, self.limits, self.graph_sizes)
        except torch.OutOfMemoryError:
            raise CapacityError(
                f"a step of {self.limits.tokens} tokens does not fit into the memory beside the weights",
                hint="lower --max-num-batched-tokens, or free the GPU of other processes",
            ) from None
        # logits as the head makes them and in fp32, their log-probabilities, a copy of those
        return replace(room, scoring=self.limits.tokens * self.spec.vocab_size * (dtype.itemsize + 3 * 4))

    def make_ready(self, runner: Runner) -> None:
        self._warm_up(runner, None)
        limits = self.limits
        if self.graph_sizes:
            device = str(runner.pool.layers[0].pages.device)
            buffers = DecodeBuffers(self.graph_sizes[-1], limits.longest, limits.page_tokens, device, runner.impl)
            runner.record(GraphSet(self.graph_sizes, buffers))
        run_largest(runner, limits)

    def _warm_up(self, runner: Runner, threads: int | None) -> None:
        spec, limits = self.spec, self.limits
        group = spec.heads // spec.kv_heads
        warm_up(runner, variants(group, limits.page_tokens, limits.tokens, limits.longest, limits.sequences), threads)
