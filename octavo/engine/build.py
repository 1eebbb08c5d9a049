"""From options to a running engine: open the checkpoint, size the pool, choose kernels, load the weights."""

import logging
from dataclasses import dataclass

import torch

from octavo.base import device as hardware
from octavo.base.errors import CapacityError, CheckpointError
from octavo.calibrate.cache_plan import CachePlan, choose_plan, make_transforms
from octavo.checkpoint import open_checkpoint, open_tokenizer
from octavo.checkpoint.load import resolve_device, resolve_dtype, weight_loader
from octavo.checkpoint.source import Source
from octavo.checkpoint.tokenizer import Tokenizer
from octavo.engine.engine import Engine
from octavo.engine.limits import EngineLimits
from octavo.engine.options import EngineOptions
from octavo.engine.pool_size import CacheShape, Room, count_pages, describe, gpu_budget, host_budget, parse_memory
from octavo.engine.prepare import Preparation
from octavo.engine.remedies import Asked
from octavo.engine.runner import Runner
from octavo.engine.self_test import Bench, SelfTest, self_test
from octavo.kernels.choice import KernelChoice, choose
from octavo.kv.clips import ClipMeter
from octavo.kv.plan import uniform_plan
from octavo.kv.pool import PagePool
from octavo.models.dense import DenseDecoder

__all__ = ["CacheFacts", "LoadedEngine", "LoadedWeights", "build_engine"]

log = logging.getLogger("octavo")

_TRIAL_PAGES = 2


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
    runner, model_len = _runner(options, cache, weights, kernels, model_len)
    pool, tokenizer = runner.pool, weights.tokenizer
    limits = EngineLimits(
        spec.vocab_size,
        model_len,
        options.max_num_seqs,
        options.max_num_batched_tokens,
        options.block_size,
        pool.num_pages,
    )
    clips = ClipMeter(pool)
    runner.clips = clips if clips.needed else None
    engine = Engine(
        runner, limits, tokenizer,
        tokenizer.eos_token_ids if tokenizer else spec.eos_token_ids,
        options.enable_prefix_caching, options.seed, options.debug,
    )  # fmt: skip
    return LoadedEngine(engine, weights, _facts(pool, limits, kernels, cache.source, tested))


def _runner(
    options: EngineOptions, cache: CachePlan, weights: LoadedWeights, kernels: KernelChoice, model_len: int
) -> tuple[Runner, int]:
    """The model over a pool of all pages that there is room for, ready to run; and how long sequences can be."""
    spec, device = weights.source.spec, weights.device
    layouts = cache.plan.layouts(spec.kv_heads, spec.head_dim, options.block_size)
    load = weight_loader(weights.source, torch.float32, device)
    transforms = make_transforms(cache, spec, load, weights.model.rope, device)

    def over(pages: int) -> Runner:
        pool = PagePool(cache.plan, layouts, pages, device, transforms=transforms)
        return Runner(weights.model, pool, kernels.impl, options.debug, options.deterministic)

    room, preparation = Room(device, hardware.device_memory(device)[0]), None
    page_bytes, most = sum(layout.page_bytes for layout in layouts), -(-model_len // options.block_size)
    shape = CacheShape(page_bytes, options.block_size, most * options.max_num_seqs)
    if device != "cpu":
        if options.kv_cache_memory is not None:  # what cannot be is refused before kernels are compiled
            _count_pages(options, room, shape)
        preparation = Preparation.of(options, spec, kernels, model_len)
        room = preparation.try_out(over(_TRIAL_PAGES), weights.dtype)
    runner = over(_count_pages(options, room, shape))
    model_len = _fit(options, model_len, runner.pool.num_pages)
    if preparation is not None:
        preparation.shorter(model_len).make_ready(runner)
    return runner, model_len


def _count_pages(options: EngineOptions, room: Room, shape: CacheShape) -> int:
    asked = None if options.kv_cache_memory is None else parse_memory(options.kv_cache_memory)
    share, budget = options.gpu_memory_utilization, 0
    if asked is None:
        budget = host_budget(room) if room.device == "cpu" else gpu_budget(room, share)
    pages = count_pages(asked, budget, room, shape)
    if room.total:
        log.info("%s", describe(asked, share, room, pages * shape.page_bytes))
    return pages


def _tested(options: EngineOptions, cache: CachePlan, weights: LoadedWeights) -> tuple[CachePlan, SelfTest]:
    def impl_of(plan: CachePlan) -> str:
        return choose(options.kernels, weights.device, plan.plan, options.block_size).impl

    load = weight_loader(weights.source, torch.float32, weights.device)
    bench = Bench(weights.model, load, weights.tokenizer, weights.device, options.block_size, impl_of)
    asked = Asked(options.kv_rotate, options.kv_bias_free, options.kv_balance)
    return self_test(bench, cache, asked, str(options.kv_self_test))


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
