"""Time of a decode step, and of prefill, for models with random weights: `python benchmarks/step.py [--out FILE]`.

No checkpoint is read: weights are made on the device. Decode: B sequences with a context of 2048 tokens each; the
median wall time of a step, greedy sampling included, launched kernel by kernel and as a CUDA graph, and what of it the
device took, from the first copy of inputs to the sampled ids. Prefill: 16
prompts of 2048 tokens, 4 at a time. The floor of a decode step is the bytes it must read (weights but for the
embedding, and the encoded contexts) over what a kernel that only reads reaches on the same machine.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.arguments import caches, models
from benchmarks.kernels import read_ceiling
from benchmarks.made_up import config_of
from benchmarks.report import Report
from octavo.engine.batch import Batch
from octavo.engine.graphs import DecodeBuffers, GraphSet
from octavo.engine.runner import Runner
from octavo.kernels.rows import Chunks, Rows
from octavo.kv.plan import KVPlan, uniform_plan
from octavo.kv.pool import PagePool
from octavo.models.dense import DenseDecoder
from octavo.models.families import spec_of_config, weight_shapes
from octavo.models.spec import ModelSpec

__all__ = ["main", "make_batch", "make_pool", "make_runner"]

PAGE_TOKENS = 64
LONGEST = 4096  # what the engine would admit: the grids of a graph are made for it
SPARE_BYTES = 6 << 30  # for activations, and for what the libraries keep


@dataclass(frozen=True)
class Shape:
    """Decode of `batches` at `context`, prefill of `prompts` of `context` tokens, `at_once` in a step."""

    batches: tuple[int, ...]
    context: int
    prompts: int
    at_once: int


def make_runner(model: DenseDecoder, plan: KVPlan, sequences: int, context: int, device: str) -> Runner:
    pool = make_pool(model.spec, plan, sequences * (context // PAGE_TOKENS), device)
    return Runner(model, pool, "triton" if device == "cuda" else "reference")


def make_model(spec: ModelSpec, device: str) -> DenseDecoder:
    shapes, dtype = weight_shapes(spec), torch.bfloat16 if device == "cuda" else torch.float32

    def load(name: str) -> Tensor:
        weight = torch.empty(shapes[name], dtype=dtype, device=device)
        return weight.fill_(1.0) if len(shapes[name]) == 1 else weight.normal_(0.0, 0.02)

    return DenseDecoder(spec, load, LONGEST, device)


def make_pool(spec: ModelSpec, plan: KVPlan, pages: int, device: str) -> PagePool:
    """Every page holds the same random vectors."""
    pool = PagePool(plan, plan.layouts(spec.kv_heads, spec.head_dim, PAGE_TOKENS), pages, device)
    for layer in pool.layers:
        for side, slots in ((layer.plan.key, layer.layout.key_slots), (layer.plan.value, layer.layout.value_slots)):
            vectors = torch.randn(1, spec.kv_heads, PAGE_TOKENS, spec.head_dim, device=device)
            for slot, plane in zip(slots, side.scheme.encode(vectors), strict=True):
                layer.plane(slot)[:] = plane
    return pool


def make_batch(sequences: int, new: int, context: int, pages: int, device: str) -> Batch:
    """The last `new` tokens of each sequence, on pages dealt out in shuffled order."""
    per_row = context // PAGE_TOKENS
    tables = torch.randperm(pages, device=device)[: sequences * per_row].to(torch.int32).view(sequences, per_row)
    run = torch.arange(context - new, context, device=device)
    slots = tables.long()[:, run // PAGE_TOKENS] * PAGE_TOKENS + run % PAGE_TOKENS
    rows = Rows(
        query_start=torch.arange(sequences + 1, dtype=torch.int32, device=device) * new,
        context=torch.full((sequences,), context, dtype=torch.int32, device=device),
        block_tables=tables, positions=run.repeat(sequences), slots=slots.flatten(), max_query=new, max_context=context,
        singles=sequences if new == 1 else 0,
        chunks=Chunks.of([new] * sequences, [context] * sequences, device) if new > 1 else None,
    )  # fmt: skip
    tokens = torch.randint(0, 300, (sequences * new,), device=device)
    return Batch(tokens, rows, torch.arange(sequences, device=device) * new + new - 1, ())


def step_seconds(runner: Runner, batch: Batch, repeats: int) -> float:
    times = []
    for _ in range(repeats + 2):
        begin = time.perf_counter()
        runner.run(batch).argmax(-1).tolist()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


def device_seconds(runner: Runner, batch: Batch, repeats: int) -> float | None:
    """As `step_seconds`, by the device's own clock; a host that is slow does not count while the device is busy."""
    if batch.tokens.device.type != "cuda":
        return None
    times = []
    for _ in range(repeats + 2):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        runner.run(batch).argmax(-1)
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / 1e3)
    return statistics.median(times[2:])


def decode(runner: Runner, spec: ModelSpec, shape: Shape, size: int, ceiling: float) -> Iterator[dict[str, Any]]:
    pool = runner.pool
    device = pool.layers[0].pages.device.type
    batch = make_batch(size, 1, shape.context, pool.num_pages, device)
    item = 2 if device == "cuda" else 4
    weights = (spec.parameters - (0 if spec.tied_embeddings else spec.vocab_size * spec.width)) * item
    sides = [side.scheme.vector_bytes(spec.head_dim) for one in pool.plan.layers for side in (one.key, one.value)]
    cache = size * shape.context * spec.kv_heads * sum(sides)
    floor = (weights + cache) / ceiling
    for mode in ("eager", "graph") if device == "cuda" else ("eager",):
        if mode == "graph":
            runner.record(GraphSet((size,), DecodeBuffers(size, LONGEST, PAGE_TOKENS, device, runner.impl)))
        seconds = step_seconds(runner, batch, 10 if mode == "eager" else 20)
        on_device = device_seconds(runner, batch, 20) if mode == "graph" else None
        runner.graphs = None
        yield {
            "kind": "decode", "mode": mode, "batch": size, "context": shape.context, "step_ms": seconds * 1e3,
            "device_ms": None if on_device is None else on_device * 1e3, "tokens_per_s": size / seconds,
            "floor_ms": floor * 1e3, "share_of_floor": floor / seconds, "weight_bytes": weights, "cache_bytes": cache,
        }  # fmt: skip


def prefill(runner: Runner, shape: Shape) -> dict[str, Any]:
    device = runner.pool.layers[0].pages.device.type
    batch = make_batch(shape.at_once, shape.context, shape.context, runner.pool.num_pages, device)
    steps = shape.prompts // shape.at_once
    runner.run(batch).argmax(-1).tolist()
    begin = time.perf_counter()
    for _ in range(steps):
        runner.run(batch).argmax(-1).tolist()
    seconds = time.perf_counter() - begin
    tokens = steps * shape.at_once * shape.context
    return {
        "kind": "prefill", "mode": "eager", "batch": shape.prompts, "context": shape.context, "at_once": shape.at_once,
        "step_ms": seconds / steps * 1e3, "tokens_per_s": tokens / seconds,
    }  # fmt: skip


def measure(model: DenseDecoder, dtype: str, shape: Shape, ceiling: float, device: str) -> Iterator[dict[str, Any]]:
    """All rows of one model and one cache; batches that do not fit into the memory are named as such."""
    spec = model.spec
    plan = uniform_plan(dtype, spec.layers, spec.head_dim)
    token_bytes = sum(layout.page_bytes for layout in plan.layouts(spec.kv_heads, spec.head_dim)) / PAGE_TOKENS
    free = torch.cuda.mem_get_info()[0] - SPARE_BYTES if device == "cuda" else 1 << 30
    fitting = [size for size in shape.batches if size * shape.context * token_bytes <= free]
    for size in sorted(set(shape.batches) - set(fitting)):
        yield {"kind": "decode", "batch": size, "context": shape.context, "skipped": "the cache does not fit"}
    runner = make_runner(model, plan, max([*fitting, shape.at_once]), shape.context, device)
    for size in fitting:
        yield from decode(runner, spec, shape, size, ceiling)
    yield prefill(runner, shape)


def sweep(
    models: Sequence[str], dtypes: Sequence[str], shape: Shape, ceiling: float, device: str, seconds: float
) -> Iterator[dict[str, Any]]:
    """Every row of every model and cache; none is begun when `seconds` are over."""
    begin = time.perf_counter()
    for name in models:
        _free_memory(device)
        spec = spec_of_config(config_of(name, LONGEST))
        with torch.inference_mode():
            model = make_model(spec, device)
        for dtype in dtypes:
            _free_memory(device)
            if time.perf_counter() - begin > seconds:
                print(f"out of time: {name} {dtype} is not measured")
                continue
            for row in measure(model, dtype, shape, ceiling, device):
                at = {"seconds_in": round(time.perf_counter() - begin)}
                yield {"model": name, "kv_cache_dtype": dtype, **row, **at}
        del model


def _free_memory(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", type=models, default="7b,8b")
    parser.add_argument("--dtypes", type=caches, default="int8,bf16,int4", help="a K,V pair as int8/int4")
    parser.add_argument("--batches", default="32,8,128")
    parser.add_argument("--seconds", type=float, default=320, help="no model and cache is begun after this long")
    parser.add_argument("--tiny", action="store_true", help="a model that a CPU runs in seconds")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tiny = options.tiny or device == "cpu"
    shape = Shape((2, 4), 128, 4, 2) if tiny else Shape(tuple(map(int, options.batches.split(","))), 2048, 16, 4)
    ceiling = read_ceiling(device)
    report = Report(options.out, device, ceiling)
    shapes = ("tiny",) if tiny else options.models
    for row in sweep(shapes, options.dtypes, shape, ceiling, device, options.seconds):
        print(_line(row), flush=True)
        report.add(row)
    print(f"read ceiling: {ceiling / 1e9:.0f} GB/s")


def _line(row: dict[str, Any]) -> str:
    head = f"{row['seconds_in']:4} s  {row['model']:4} {row['kv_cache_dtype']:5} {row['kind']:8} B={row['batch']:<4}"
    if "skipped" in row:
        return f"{head} {row['skipped']}"
    share = f"  floor {row['floor_ms']:.2f} ms, {row['share_of_floor']:.0%}" if "floor_ms" in row else ""
    return f"{head} {row['mode']:6} {row['step_ms']:8.2f} ms {row['tokens_per_s']:9.0f} tok/s{share}"


if __name__ == "__main__":
    main()
