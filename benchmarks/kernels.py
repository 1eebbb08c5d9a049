"""How close attention and store come to the memory wall: `python benchmarks/kernels.py [--out FILE]`.

Attention must read every byte of the context's pages once, so its floor is those bytes over what a plain streaming
kernel reads per second on the same machine. Buffers rotate and exceed the L2 cache several times. On a GPU each case
is captured in a CUDA graph and the median of its replays is taken; without one, tiny cases run with the reference.

Attention is timed twice: alone, one launch after another with nothing overlapped ("attention"); and as a decode step
has it, behind the launch that stores the new token, less what that store takes alone ("attention behind store").
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.arguments import cache
from benchmarks.report import Report
from octavo.kernels.attention import attend
from octavo.kernels.rows import Rope, Rows
from octavo.kernels.store import store
from octavo.kv.plan import Rotate, uniform_plan
from octavo.kv.pool import LayerPages, PagePool

__all__ = [
    "Case", "attention_cases", "launched_in_turn", "main", "make_layers", "make_rows", "measure_attention",
    "read_ceiling",
]  # fmt: skip

ROTATED_BYTES = 1 << 30  # together the buffers of one case are at least this long


@dataclass(frozen=True)
class Case:
    dtype: str
    batch: int
    kv_heads: int
    group: int
    context: int
    head_dim: int = 128
    rotate: Rotate = "auto"

    @property
    def pages(self) -> int:
        return self.batch * (self.context // 64)

    def must_read_bytes(self) -> int:
        layer = uniform_plan(self.dtype, 1, self.head_dim).layers[0]
        vector = layer.key.scheme.vector_bytes(self.head_dim) + layer.value.scheme.vector_bytes(self.head_dim)
        return self.batch * self.context * self.kv_heads * vector


def attention_cases(
    tiny: bool, dtypes: Sequence[str] = ("bf16", "fp8", "int8", "int8,int4", "int4"),
    contexts: Sequence[int] = (2048, 8192),
) -> list[Case]:  # fmt: skip
    if tiny:
        return [Case(dtype, 2, 2, group, 128, 64) for dtype in dtypes for group in (1, 4)]
    shapes = [(32, 1), (8, 4)]
    return [
        Case(dtype, batch, kv_heads, group, context)
        for kv_heads, group in shapes
        for context in contexts
        for batch in (32, 128, 8, 1)
        for dtype in dtypes
        if batch * context * kv_heads <= 128 * 8192 * 8
    ]


def make_layers(case: Case, device: str, rotated_bytes: int) -> list[LayerPages]:
    """Pools of one layer, enough of them that a pass over all leaves no cache warm; contents are random vectors."""
    plan = uniform_plan(case.dtype, 1, case.head_dim, case.rotate)
    layouts = plan.layouts(case.kv_heads, case.head_dim)
    count = max(1, -(-rotated_bytes // (case.pages * layouts[0].page_bytes)))
    layers = [PagePool(plan, layouts, case.pages, device).layers[0] for _ in range(min(count, 64))]
    for side, slots in (("key", layouts[0].key_slots), ("value", layouts[0].value_slots)):
        vectors = torch.randn(1, case.kv_heads, 64, case.head_dim, device=device)
        for slot, plane in zip(slots, getattr(plan.layers[0], side).scheme.encode(vectors), strict=True):
            for layer in layers:
                layer.plane(slot)[:] = plane
    return layers


def make_rows(case: Case, device: str, new: int = 1) -> Rows:
    per_row = case.context // 64
    tables = torch.randperm(case.pages, device=device).to(torch.int32).view(case.batch, per_row)
    positions = torch.arange(case.context - new, case.context, device=device).repeat(case.batch)
    pages = tables[:, (case.context - new) // 64 :].repeat_interleave(min(new, 64), 1)[:, :new].flatten()
    starts = torch.arange(case.batch + 1, dtype=torch.int32, device=device) * new
    contexts = torch.full((case.batch,), case.context, dtype=torch.int32, device=device)
    return Rows(starts, contexts, tables, positions, pages.long() * 64 + positions % 64, new, case.context)


def seconds_of(runs: list[Callable[[], Any]], device: str, repeats: int = 15) -> float:
    """Median seconds of one run: all of `runs` in turn, as one CUDA graph where there is a GPU."""
    for run in runs[:2]:
        run()
    if device == "cpu":
        times = []
        for _ in range(3):
            start = time.perf_counter()
            for run in runs:
                run()
            times.append(time.perf_counter() - start)
        return statistics.median(times) / len(runs)
    torch.cuda.synchronize()  # the side stream does not wait for what was just filled
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for run in runs[:2]:
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            for run in runs:
                run()
    graph.replay()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in pairwise(marks)) / 1e3 / len(runs)


def read_ceiling(device: str) -> float:
    """Bytes a second of a kernel that only reads."""
    if device == "cpu":
        data = torch.ones(1 << 24, dtype=torch.float32)
        return data.nbytes / seconds_of([data.sum], device)
    from benchmarks.streaming import read_all

    data = torch.randint(0, 1 << 30, (1 << 30,), dtype=torch.int32, device=device)
    return data.nbytes / min(seconds_of([partial(read_all, data, block)], device) for block in (1024, 2048, 4096, 8192))


def measure_attention(
    case: Case, impl: str, device: str, rotated_bytes: int = ROTATED_BYTES, behind_store: bool = False
) -> float:
    """Seconds of one launch; `behind_store`: what it adds to those of a store before it."""
    layers, rows = make_layers(case, device, rotated_bytes), make_rows(case, device)
    layers = layers * max(1, 8 // len(layers))
    heads, scale = case.kv_heads * case.group, case.head_dim**-0.5
    if not behind_store:
        q = torch.randn(case.batch, heads, case.head_dim, device=device)
        with launched_in_turn():
            return seconds_of([partial(attend, q, rows, layer, impl, scale) for layer in layers], device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    q, k, v = (
        torch.randn(case.batch, count, case.head_dim, device=device, dtype=dtype)
        for count in (heads, case.kv_heads, case.kv_heads)
    )

    def both(layer: LayerPages) -> Tensor:
        return attend(store(q, k, v, None, rows, layer, impl), rows, layer, impl, scale)

    stores = seconds_of([partial(store, q, k, v, None, rows, layer, impl) for layer in layers], device)
    return seconds_of([partial(both, layer) for layer in layers], device) - stores


@contextmanager
def launched_in_turn() -> Iterator[None]:
    """Without launches that begin before the one before them has ended: two of a kind would share the chip."""
    if not torch.cuda.is_available():
        yield
        return
    from octavo.kernels.attention import triton

    follows, triton.follows = triton.follows, lambda device: {"EARLY": False}
    try:
        yield
    finally:
        triton.follows = follows


def measure_store(
    case: Case, impl: str, device: str, new: int, rotated_bytes: int = ROTATED_BYTES
) -> tuple[float, int]:
    """Seconds, and the bytes that must move: bf16 q, k and v in, fp32 q and the encoded vectors out."""
    layers, rows = make_layers(case, device, rotated_bytes // 4), make_rows(case, device, new)
    tokens, heads = case.batch * new, case.kv_heads * case.group
    q, k, v = (
        torch.randn(tokens, count, case.head_dim, device=device, dtype=torch.bfloat16)
        for count in (heads, case.kv_heads, case.kv_heads)
    )
    angles = torch.rand(case.context, case.head_dim // 2, device=device)
    rope = Rope(angles.cos(), angles.sin())

    def one(layer: LayerPages) -> Callable[[], Tensor]:
        return lambda: store(q, k, v, rope, rows, layer, impl)

    runs = [one(layer) for layer in layers]
    stored = case.must_read_bytes() // (case.batch * case.context) * tokens
    moved = q.nbytes + k.nbytes + v.nbytes + q.numel() * 4 + stored
    return seconds_of(runs * max(1, 8 // len(runs)), device), moved


def _record(kind: str, case: Case, seconds: float, moved: int, ceiling: float, **more: Any) -> dict[str, Any]:
    speed = moved / seconds
    line = {"kind": kind, **asdict(case), **more, "microseconds": round(seconds * 1e6, 2), "bytes": moved}
    return line | {"gb_per_s": round(speed / 1e9, 1), "share_of_ceiling": round(speed / ceiling, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--impl", default="triton" if torch.cuda.is_available() else "reference")
    parser.add_argument("--dtypes", nargs="+", type=cache, default=["bf16", "fp8", "int8", "int8,int4", "int4"])
    parser.add_argument("--contexts", nargs="+", type=int, default=[2048, 8192])
    parser.add_argument("--tiny", action="store_true", help="shapes that a CPU runs in seconds")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tiny = options.tiny or device == "cpu"
    ceiling = read_ceiling(device)
    report = Report(options.out, device, ceiling, impl=options.impl)
    for result in _measurements(options, device, tiny, ceiling):
        print(result, flush=True)
        report.add(result)
    print(f"read ceiling: {ceiling / 1e9:.0f} GB/s on {report.found['machine']['device']}")


def _measurements(options: argparse.Namespace, device: str, tiny: bool, ceiling: float) -> Iterator[dict[str, Any]]:
    impl: str = options.impl
    rotated = 1 << 20 if tiny else ROTATED_BYTES
    for case, new in [(Case("int8", 2, 2, 1, 128, 64), 4)] if tiny else _store_cases():
        seconds, moved = measure_store(case, impl, device, new, rotated)
        yield _record("store", case, seconds, moved, ceiling, new_tokens=new)
    for case in attention_cases(tiny, options.dtypes, options.contexts):
        for kind in ("attention", "attention behind store"):
            seconds = measure_attention(case, impl, device, rotated, kind != "attention")
            yield _record(kind, case, seconds, case.must_read_bytes(), ceiling)


def _store_cases() -> list[tuple[Case, int]]:
    return [
        (Case(dtype, batch, 32, 1, 2048), new)
        for dtype in ("bf16", "int8", "int4")
        for batch, new in ((32, 1), (4, 512))
    ]


if __name__ == "__main__":
    main()
