"""From options to a running engine: open the checkpoint, size the pool, choose kernels, load the weights."""

import logging
from dataclasses import dataclass

import torch

from octavo.base import device as hardware
from octavo.base.errors import CapacityError, CheckpointError
from octavo.base.units import format_bytes
from octavo.calibrate.cache_plan import CachePlan, choose_plan, make_transforms
from octavo.checkpoint import open_checkpoint, open_tokenizer
from octavo.checkpoint.load import resolve_device, resolve_dtype, weight_loader
from octavo.checkpoint.source import Source
from octavo.checkpoint.tokenizer import Tokenizer
from octavo.engine.engine import Engine
from octavo.engine.graphs import DecodeBuffers, GraphSet, ladder
from octavo.engine.limits import EngineLimits
from octavo.engine.options import EngineOptions, parse_memory
from octavo.engine.remedies import Asked
from octavo.engine.runner import Runner
from octavo.engine.self_test import Bench, SelfTest, self_test
from octavo.engine.warm_up import variants, warm_up
from octavo.kernels.choice import KernelChoice, choose
from octavo.kv.clips import ClipMeter
from octavo.kv.layout import PageLayout
from octavo.kv.plan import uniform_plan
from octavo.kv.pool import PagePool
from octavo.models.dense import DenseDecoder
from octavo.models.spec import ModelSpec

__all__ = ["CacheFacts", "LoadedEngine", "LoadedWeights", "build_engine"]

log = logging.getLogger("octavo")

_DEFAULT_CPU_BYTES = 2 << 30


@dataclass(frozen=True)
class CacheFacts:
    """What the cache of a running engine is: the numbers that go into every report."""

    dtype: str
    plan: str
    plan_source: str
    """asked for, default, an asset or the checkpoint"""
    page_tokens: int
    pages: int
    bytes_per_token: float
    bytes_per_token_bf16: float
    allocated_bytes: int
    capacity_tokens: int
    max_model_len: int
    kernels: str
    self_test: SelfTest


@dataclass(frozen=True)
class LoadedWeights:
    """What an engine has apart from its cache; engines with different caches can share it."""

    source: Source
    model: DenseDecoder
    tokenizer: Tokenizer | None
    dtype: torch.dtype
    device: str
    model_len: int


@dataclass(frozen=True)
class LoadedEngine:
    engine: Engine
    weights: LoadedWeights
    facts: CacheFacts


def build_engine(options: EngineOptions, weights: LoadedWeights | None = None) -> LoadedEngine:
    """Everything that a flag or a file can get wrong is raised here, before a request is taken. `weights` of another
    engine are used as they are: the two then differ in their caches alone."""
    if weights is None:
        source = open_checkpoint(options.model)
        source.check()
        device = resolve_device(options.device)
        dtype = resolve_dtype(options.dtype, device)
    else:
        source, device, dtype = weights.source, weights.device, weights.dtype
    spec = source.spec
    cache = choose_plan(options.cache, source)
    kernels = choose(options.kernels, device, cache.plan, options.block_size)
    if kernels.reason:
        log.warning("attention runs on the slow reference kernels: %s", kernels.reason)

    model_len = _model_len(options, spec.max_position if weights is None else weights.model_len)
    if weights is None:
        model = DenseDecoder(spec, weight_loader(source, dtype, device), model_len, device)
        if options.deterministic:
            model.make_invariant()
        weights = LoadedWeights(source, model, _tokenizer(options, source), dtype, device, model_len)
    cache, tested = _tested(options, cache, weights)
    pool = _pool(options, cache, weights, model_len)
    model_len = _fit(options, model_len, pool.num_pages)
    limits = EngineLimits(
        spec.vocab_size,
        model_len,
        options.max_num_seqs,
        options.max_num_batched_tokens,
        options.block_size,
        pool.num_pages,
    )
    tokenizer = weights.tokenizer
    runner = Runner(weights.model, pool, kernels.impl, options.debug, options.deterministic)
    if device != "cpu":
        _prepare(runner, options, spec, limits, kernels)
    clips = ClipMeter(pool)
    runner.clips = clips if clips.needed else None
    engine = Engine(
        runner, limits, tokenizer,
        tokenizer.eos_token_ids if tokenizer else spec.eos_token_ids,
        options.enable_prefix_caching, options.seed, options.debug,
    )  # fmt: skip
    return LoadedEngine(engine, weights, _facts(pool, limits, kernels, cache.source, tested))


def _tested(options: EngineOptions, cache: CachePlan, weights: LoadedWeights) -> tuple[CachePlan, SelfTest]:
    def impl_of(plan: CachePlan) -> str:
        return choose(options.kernels, weights.device, plan.plan, options.block_size).impl

    load = weight_loader(weights.source, torch.float32, weights.device)
    bench = Bench(weights.model, load, weights.tokenizer, weights.device, options.block_size, impl_of)
    asked = Asked(options.kv_rotate, options.kv_bias_free, options.kv_balance)
    return self_test(bench, cache, asked, str(options.kv_self_test))


def _pool(options: EngineOptions, cache: CachePlan, weights: LoadedWeights, model_len: int) -> PagePool:
    spec, device = weights.source.spec, weights.device
    layouts = cache.plan.layouts(spec.kv_heads, spec.head_dim, options.block_size)
    load = weight_loader(weights.source, torch.float32, device)
    transforms = make_transforms(cache, spec, load, weights.model.rope, device)
    num_pages = _num_pages(options, layouts, model_len, device)
    return PagePool(cache.plan, layouts, num_pages, device, transforms=transforms)


def _prepare(
    runner: Runner, options: EngineOptions, spec: ModelSpec, limits: EngineLimits, kernels: KernelChoice
) -> None:
    """What a GPU should have done before the first request: compiled its kernels, recorded its decode steps."""
    longest, page_tokens = limits.max_model_len, limits.page_tokens
    several = variants(spec.heads // spec.kv_heads, page_tokens, limits.max_batched_tokens, longest)
    warm_up(runner, several, hardware.physical_cores() if kernels.impl == "triton" else None)
    eager = options.enforce_eager or options.debug or options.deterministic
    if kernels.graphs and not eager:
        sizes = ladder(limits.max_sequences)
        device = str(runner.pool.layers[0].pages.device)
        runner.record(GraphSet(sizes, DecodeBuffers(sizes[-1], longest, page_tokens, device)))


def _tokenizer(options: EngineOptions, source: Source) -> Tokenizer | None:
    """A model without a tokenizer still serves token ids; one that was named must be there."""
    if options.tokenizer is not None:
        return open_tokenizer(options.tokenizer)
    try:
        return source.tokenizer()
    except CheckpointError as error:
        log.warning("%s; only token ids can be served", error.message)
        return None


def _model_len(options: EngineOptions, longest: int) -> int:
    if options.max_model_len is None:
        return longest
    if options.max_model_len > longest:
        raise CapacityError(
            f"max_model_len {options.max_model_len} is more than the model was made for ({longest})",
            hint=f"use --max-model-len {longest} or less",
        )
    return options.max_model_len


def _num_pages(options: EngineOptions, layouts: tuple[PageLayout, ...], model_len: int, device: str) -> int:
    """Pages that the memory request pays for; never more than all sequences at full length could use."""
    page_bytes = sum(layout.page_bytes for layout in layouts)
    most = -(-model_len // options.block_size) * options.max_num_seqs
    free = _free_bytes(device)
    if options.kv_cache_memory is None:
        budget = min(_DEFAULT_CPU_BYTES, int(free * 0.4)) if device == "cpu" else int(free * 0.9)
        return _at_least_one(min(budget // page_bytes, most), page_bytes, budget)
    request = parse_memory(options.kv_cache_memory)
    if request.tokens is not None:
        pages, budget = -(-request.tokens // options.block_size), -(-request.tokens // options.block_size) * page_bytes
    else:
        budget = int(free * request.share) if request.share is not None else request.byte_count or 0
        pages = budget // page_bytes
    if pages * page_bytes > free:
        raise CapacityError(
            f"the cache would take {format_bytes(pages * page_bytes)} and {format_bytes(free)} are free on {device}",
            hint="lower --kv-cache-memory",
        )
    return _at_least_one(pages, page_bytes, budget)


def _at_least_one(pages: int, page_bytes: int, budget: int) -> int:
    if pages < 1:
        raise CapacityError(
            f"one page of all layers takes {format_bytes(page_bytes)} and the cache has {format_bytes(budget)}",
            hint="raise --kv-cache-memory or choose a smaller --kv-cache-dtype",
        )
    return pages


def _free_bytes(device: str) -> int:
    return hardware.available_memory_bytes() if device == "cpu" else hardware.device_memory(device)[0]


def _fit(options: EngineOptions, model_len: int, num_pages: int) -> int:
    """A pool smaller than one full sequence: refused if the length was asked for, else the length is cut, aloud."""
    capacity = num_pages * options.block_size
    if capacity >= model_len:
        return model_len
    if options.max_model_len is not None and options.kv_cache_memory is None:
        raise CapacityError(
            f"one sequence of {model_len} tokens needs {-(-model_len // options.block_size)} pages and the pool has "
            f"{num_pages}", hint="give more --kv-cache-memory, a smaller --kv-cache-dtype or a shorter --max-model-len",
        )  # fmt: skip
    log.warning("sequences are limited to %d tokens: that is all the cache holds", capacity)
    return capacity


def _facts(
    pool: PagePool, limits: EngineLimits, kernels: KernelChoice, origin: str, tested: SelfTest
) -> CacheFacts:  # fmt: skip
    geometry = pool.layouts[0]
    bf16 = uniform_plan("bf16", len(pool.layouts), geometry.head_dim).layouts(
        geometry.kv_heads, geometry.head_dim, limits.page_tokens
    )
    return CacheFacts(
        dtype=pool.plan.name,
        plan=pool.plan.describe(),
        plan_source=origin,
        page_tokens=limits.page_tokens,
        pages=limits.num_pages,
        bytes_per_token=sum(layout.page_bytes for layout in pool.layouts) / limits.page_tokens,
        bytes_per_token_bf16=sum(layout.page_bytes for layout in bf16) / limits.page_tokens,
        allocated_bytes=pool.allocated_bytes,
        capacity_tokens=limits.capacity_tokens,
        max_model_len=limits.max_model_len,
        kernels=kernels.impl,
        self_test=tested,
    )
