"""The memory law, measured: really fill caches of B sequences and ask the system what the process has.

Every row runs in this process over the same weights, with the last row's pool freed and the heap trimmed before. What
is neither weights nor cache (interpreter, libraries, kernels, workspace) is measured too, with one layer in the place
of all, so that the law's intercept can be foretold: runtime + weights + transforms.
"""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from octavo.base.device import device_memory, physical_cores
from octavo.base.errors import BadValue, CapacityError, UsageError
from octavo.base.units import format_bytes
from octavo.checkpoint import open_checkpoint
from octavo.checkpoint.load import resolve_device, resolve_dtype, weight_loader
from octavo.engine.options import DTYPES
from octavo.engine.runner import Runner
from octavo.engine.warm_up import variants, warm_up
from octavo.evals.memory_fill import FILLS, Job
from octavo.evals.memory_reading import let_go, process_mib, trim
from octavo.evals.memory_rows import MemoryRow, Probe, SkippedRow
from octavo.evals.stand_in import plan_without_numbers, random_weights, resident_bytes, stand_in_transforms
from octavo.kernels.choice import choose
from octavo.kv.layout import PAGE_TOKENS
from octavo.kv.plan import KVPlan, dtype_name
from octavo.kv.pool import PagePool
from octavo.memory.law import memory_law
from octavo.models.dense import DenseDecoder
from octavo.models.spec import ModelSpec

__all__ = ["ProbeOptions", "run_probe"]

_MIB = 2**20
Advance = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Either `model`, a checkpoint, or `shape`, a name and the sizes of a model whose weights are made up."""

    model: str | None = None
    shape: tuple[str, ModelSpec] | None = None
    dtypes: tuple[str, ...] = ("bf16", "int8", "int4")
    batch_sizes: tuple[int, ...] = (8, 16, 32, 48)
    tokens: int | None = None
    """of one sequence; None is 2048, or the model's limit if that is less"""
    fill: str = "generate"
    dtype: str = "auto"
    device: str = "auto"
    chunk: int = 1024
    """tokens of a step"""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.shape is None):
            raise UsageError(
                "memory takes either a model or a shape", hint="octavo memory smollm2, or --shape llama-7b"
            )
        if len(set(self.batch_sizes)) < 2 or min(self.batch_sizes) < 1:
            raise BadValue(
                f"batch sizes: {','.join(map(str, self.batch_sizes))} (a line needs two different ones, from 1)"
            )
        object.__setattr__(self, "dtype", DTYPES.resolve(self.dtype))
        object.__setattr__(self, "dtypes", tuple(dtype_name(cache) for cache in self.dtypes))
        if not self.dtypes or len(set(self.dtypes)) < len(self.dtypes):
            raise BadValue(f"caches: {' '.join(self.dtypes) or 'none'} (each once, at least one)")
        if self.tokens is not None and self.tokens < 2:
            raise BadValue(f"tokens: {self.tokens} (at least 2)")
        FILLS.resolve(self.fill)


def run_probe(options: ProbeOptions, advance: Advance) -> Probe:
    """Fill every cache at every batch size that fits. `advance(what, done, total)` follows it. Raises CapacityError
    where the weights alone do not fit, UsageError where the system does not say what a process takes."""
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device)
    process_mib()  # says so now if it cannot
    name, spec = options.shape or _about(str(options.model))
    tokens = options.tokens or min(2048, spec.max_position)
    if tokens > spec.max_position:
        raise BadValue(f"a sequence of {tokens} tokens is longer than the model's own limit {spec.max_position}")
    if options.fill == "generate" and tokens <= PAGE_TOKENS:  # the scheduler would not admit all of them at once
        raise BadValue(
            f"tokens: {tokens}, and generation fills more than a page of {PAGE_TOKENS}", hint="--fill prefill"
        )
    plans = {cache: plan_without_numbers(cache, spec) for cache in options.dtypes}
    bench = _Bench(options, tokens, dtype, device)
    resident = {cache: resident_bytes(spec, plan, dtype, device, tokens + 1) for cache, plan in plans.items()}
    free = bench.free_bytes()
    if max(resident.values()) > free:
        raise CapacityError(
            f"the weights take {format_bytes(max(resident.values()))} and {format_bytes(free)} are free on {device}",
            hint="take a smaller shape, or --scale",
        )
    runtime = _runtime(bench, spec, advance)
    model = bench.model(spec, made_up=options.shape is not None)
    bench.settle(model, next(iter(plans.items())))
    found = [row for plan in plans.items() for row in _rows(bench, model, plan, advance)]
    return Probe(
        name, spec, str(dtype).removeprefix("torch."), device, tokens, options.fill,
        {cache: choose("auto", device, plan).impl for cache, plan in plans.items()}, plans,
        tuple(row for row in found if isinstance(row, MemoryRow)),
        tuple(row for row in found if isinstance(row, SkippedRow)),
        runtime, {cache: count / _MIB for cache, count in resident.items()},
    )  # fmt: skip


def _about(model: str) -> tuple[str, ModelSpec]:
    source = open_checkpoint(model)
    return source.name, source.spec


def _runtime(bench: "_Bench", spec: ModelSpec, advance: Advance) -> dict[str, float]:
    """What a process has beside weights and cache. Every cache runs once before any is measured: what kernels leave
    behind stays in the process, whichever comes next."""
    small = replace(spec, layers=1, windows=spec.windows[:1])
    model = bench.model(small, made_up=True)
    plans = {cache: plan_without_numbers(cache, small) for cache in bench.options.dtypes}
    found = {}
    for count, (cache, plan) in enumerate([*plans.items(), *plans.items()]):
        advance("kernels and runtime", count, 2 * len(plans))
        row = bench.row(model, cache, plan, min(bench.options.batch_sizes), lambda tokens: None)
        known = resident_bytes(small, plan, bench.dtype, bench.device, bench.tokens + 1) / _MIB
        found[cache] = row.total_mib - row.kv_mib - known
    advance("kernels and runtime", 2 * len(plans), 2 * len(plans))
    return found


def _rows(
    bench: "_Bench", model: DenseDecoder, plan: tuple[str, KVPlan], advance: Advance
) -> Iterator[MemoryRow | SkippedRow]:
    """One cache at every batch size, smallest first."""
    cache, law = plan[0], memory_law(model.spec, plan[1])
    sizes = sorted(set(bench.options.batch_sizes))
    done, total = 0, sum(sizes) * bench.tokens
    for batch in sizes:
        needed, free = batch * law.sequence_bytes(bench.tokens), bench.free_bytes()
        if not _fits(needed, free):
            yield SkippedRow(batch, cache, needed / _MIB, free / _MIB)
            continue

        def stored(tokens: int) -> None:
            nonlocal done
            done += tokens
            advance(f"{cache}, batch {batch}", done, total)  # noqa: B023 - called before the next turn

        yield bench.row(model, *plan, batch, stored)


def _fits(needed: int, free: int) -> bool:
    """Whether so many bytes may be taken: a little is left to the rest of the machine."""
    return needed <= 0.98 * free


@dataclass(frozen=True)
class _Bench:
    """A machine and a way to fill."""

    options: ProbeOptions
    tokens: int
    dtype: torch.dtype
    device: str

    def model(self, spec: ModelSpec, made_up: bool) -> DenseDecoder:
        load = random_weights(spec, self.dtype, self.device) if made_up else self._read()
        with torch.inference_mode():
            return DenseDecoder(spec, load, self.tokens + 1, self.device)

    def _read(self) -> Callable[[str], torch.Tensor]:
        source = open_checkpoint(str(self.options.model))
        source.check()
        read = weight_loader(source, self.dtype, self.device)
        return lambda name: read(name).clone()  # not a view of the file: its pages come and go as the system likes

    def settle(self, model: DenseDecoder, plan: tuple[str, KVPlan]) -> None:
        """Run short sequences first, as many as there will be: what the heap grows by on first use is no cache's."""
        one, free = memory_law(model.spec, plan[1]).sequence_bytes(self.tokens), self.free_bytes()
        batch = max((size for size in self.options.batch_sizes if _fits(size * one, free)), default=0)
        tokens = min(self.tokens, 2 * PAGE_TOKENS)
        for fill in FILLS:
            if batch and (fill != "generate" or tokens > PAGE_TOKENS):
                short = replace(self, options=replace(self.options, fill=fill), tokens=tokens)
                short.row(model, *plan, batch, lambda tokens: None)

    def row(
        self, model: DenseDecoder, cache: str, plan: KVPlan, batch: int, advance: Callable[[int], None]
    ) -> MemoryRow:
        """Allocate, fill, measure; all but the weights is free again on return."""
        let_go(self.device)
        begin, spec = time.perf_counter(), model.spec
        layouts = plan.layouts(spec.kv_heads, spec.head_dim)
        pages = memory_law(spec, plan).pages(self.tokens) * batch
        pool = PagePool(plan, layouts, pages, self.device, transforms=stand_in_transforms(plan, spec, self.device))
        kernels = choose("auto", self.device, plan)
        runner = Runner(model, pool, kernels.impl)
        if kernels.impl == "triton":
            several = variants(spec.heads // spec.kv_heads, PAGE_TOKENS, self.options.chunk, self.tokens, batch)
            warm_up(runner, several, physical_cores())
        job = Job(batch, self.tokens, self.options.chunk, spec.vocab_size, advance)
        held = FILLS[self.options.fill](runner, job, kernels.graphs)
        assert held == pages == pool.num_pages, f"{held} pages were held, {pages} are {batch} sequences"
        gc.collect()
        trim()
        seconds = round(time.perf_counter() - begin, 2)
        return MemoryRow(
            batch, cache, process_mib(), self._device_mib(), pool.allocated_bytes / _MIB, pool.num_pages, seconds
        )

    def _device_mib(self) -> float | None:
        if self.device == "cpu":
            return None
        torch.cuda.synchronize(self.device)
        free, total = device_memory(self.device)
        return (total - free) / _MIB

    def free_bytes(self) -> int:
        let_go(self.device)
        return device_memory(self.device)[0]
