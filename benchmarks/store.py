"""How long storing takes, cut in different ways: `python benchmarks/store.py [--out FILE]`, under a minute on a GPU.

q, k and v are slices of one fused bf16 output, heads of 128, with RoPE. `rows` new tokens, one of a sequence each
(decode), or `rows` tokens of one prompt (prefill). Times are medians over replays of a CUDA graph. The floor is the
bytes that must move (bf16 q, k and v in, fp32 q and the encoded vectors out) over what a kernel that only reads
reaches; what a decode step moves stays in the L2 cache. `apart` is the distance of the returned queries from those of
the first cut, relative to their length.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kernels import read_ceiling, seconds_of
from benchmarks.report import Report
from octavo.kernels.ahead import compile_ahead
from octavo.kernels.rows import Rope, Rows
from octavo.kernels.store import store
from octavo.kv.plan import uniform_plan
from octavo.kv.pool import LayerPages, PagePool

__all__ = ["Shape", "main"]

PAGE_TOKENS = 64
HEAD_DIM = 128
Store = Callable[[LayerPages], Tensor]


@dataclass(frozen=True)
class Shape:
    kind: str
    rows: int
    dtype: str
    heads: int
    kv_heads: int

    def moved_bytes(self) -> int:
        side = uniform_plan(self.dtype, 1, HEAD_DIM).layers[0]
        encoded = sum(one.scheme.vector_bytes(HEAD_DIM) for one in (side.key, side.value))
        return self.rows * (HEAD_DIM * (self.heads * 6 + self.kv_heads * 4) + self.kv_heads * encoded)


def shapes(tiny: bool) -> list[Shape]:
    if tiny:
        return [Shape(kind, rows, "int8", 4, 2) for kind, rows in (("decode", 2), ("prefill", 64))]
    sizes = [("decode", 8), ("decode", 32), ("decode", 128), ("prefill", 2048), ("prefill", 8192)]
    return [
        Shape(kind, rows, dtype, 32, kv_heads)
        for kv_heads in (32, 8)
        for dtype in ("int8", "bf16", "int4")
        for kind, rows in sizes
    ]


def cuts(kv_heads: int, device: str) -> dict[str, Any]:
    """Name -> cut; the first is the one that engines run with."""
    if device == "cpu":
        return {"reference": None}
    from octavo.kernels.store.triton import Cut, choose_cut

    several = [choose_cut(kv_heads), Cut(4, 1), Cut(8, 1)]
    several += [Cut(vectors, 1, wide=True) for vectors in (4, 8, 16)]
    return {f"{'wide ' if cut.wide else ''}{cut.vectors} vectors, {cut.warps} warps": cut for cut in several}


def make_layer(shape: Shape, device: str) -> LayerPages:
    plan = uniform_plan(shape.dtype, 1, HEAD_DIM)
    pages = shape.rows if shape.kind == "decode" else -(-shape.rows // PAGE_TOKENS)
    return PagePool(plan, plan.layouts(shape.kv_heads, HEAD_DIM, PAGE_TOKENS), pages, device).layers[0]


def make_rows(shape: Shape, device: str) -> Rows:
    """The kernel reads positions and slots alone."""
    token = torch.arange(shape.rows, device=device)
    slots = token * PAGE_TOKENS + token % PAGE_TOKENS if shape.kind == "decode" else token
    none = torch.zeros(1, dtype=torch.int32, device=device)
    return Rows(none, none, none[None], token, slots, shape.rows, shape.rows)


def make_store(shape: Shape, cut: Any, device: str) -> Store:
    torch.manual_seed(1)
    counts = (shape.heads, shape.kv_heads, shape.kv_heads)
    fused = torch.randn(shape.rows, sum(counts) * HEAD_DIM, device=device).to(torch.bfloat16)
    sides = fused.split([count * HEAD_DIM for count in counts], dim=1)
    q, k, v = (side.unflatten(1, (-1, HEAD_DIM)) for side in sides)
    angles = torch.rand(shape.rows, HEAD_DIM // 2, device=device)
    rope, rows = Rope(angles.cos(), angles.sin()), make_rows(shape, device)
    if device == "cpu":
        return lambda layer: store(q, k, v, rope, rows, layer, "reference")
    from octavo.kernels.store import triton

    return lambda layer: triton.store(q, k, v, rope, rows, layer, cut)


def compile_all(several: list[Shape], device: str) -> None:
    with compile_ahead(8):
        for shape in several:
            if shape.kind == "decode":  # the number of tokens is not compiled for
                layer = make_layer(shape, device)
                for cut in cuts(shape.kv_heads, device).values():
                    make_store(shape, cut, device)(layer)


def measure(shape: Shape, ceiling: float, device: str) -> Iterator[dict[str, Any]]:
    layers = [make_layer(shape, device) for _ in range(8 if shape.kind == "decode" else 1)]
    first: Tensor | None = None
    for name, cut in cuts(shape.kv_heads, device).items():
        run = make_store(shape, cut, device)
        got = run(layers[0])
        first = got if first is None else first
        apart = ((got - first).norm() / first.norm()).item()

        def one(layer: LayerPages, run: Store = run) -> Callable[[], Tensor]:
            return lambda: run(layer)

        seconds = seconds_of([one(layer) for layer in layers], device)
        moved = shape.moved_bytes()
        yield asdict(shape) | {
            "cut": name, "microseconds": round(seconds * 1e6, 2), "bytes": moved,
            "share_of_floor": round(moved / ceiling / seconds, 4), "apart": apart,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    several = shapes(tiny=device == "cpu")
    ceiling = read_ceiling(device)
    report = Report(options.out, device, ceiling)
    if device != "cpu":
        compile_all(several, device)
    for shape in several:
        for row in measure(shape, ceiling, device):
            report.add(row)
            head = f"{row['dtype']:5} {row['heads']}:{row['kv_heads']:<3} {row['kind']:8} {row['rows']:5} rows"
            times = f"{row['microseconds']:9.2f} us  floor {row['share_of_floor']:4.0%}  apart {row['apart']:.1e}"
            print(f"{head}  {row['cut']:24} {times}", flush=True)
    print(f"read ceiling: {ceiling / 1e9:.0f} GB/s")


if __name__ == "__main__":
    main()
