"""How attention of one new token a sequence should be cut: `python benchmarks/splits.py [--layer] [--out FILE]`, on a
GPU.

Head width 128, contexts of one length and of many. For each shape and cache the time with pages that come through
registers, by splits of a context; with staged pages, one program a context, and all pages dealt out evenly among so
many programs a multiprocessor; and as the engine cuts it. The floor is the bytes of the pages over what a kernel that
only reads reaches. Each launch begins when the one before it has ended.

`--layer`: the time of a product, a store, attention and another product, as a decoder's layer has them (4096 wide);
attention begun when the store has ended, early, and early with no more programs on a multiprocessor than are meant to
be there. Only this says what beginning early is worth.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report import Report, need_gpu

need_gpu()

from benchmarks.kernels import Case, launched_in_turn, make_layers, make_rows, read_ceiling, seconds_of
from octavo.kernels.ahead import compile_ahead
from octavo.kernels.attention import triton as attention
from octavo.kernels.attention.tiling import StagedTiling, Tiling
from octavo.kernels.linear import FEW_ROWS, linear
from octavo.kernels.rows import Rows
from octavo.kernels.store import store
from octavo.kv.pool import LayerPages

__all__ = ["main"]

SHAPES = [(32, 1, 2048, 8), (32, 1, 2048, 32), (32, 1, 2048, 128), (8, 4, 2048, 8), (8, 4, 2048, 32), (8, 4, 2048, 128),
          (32, 1, 1024, 356), (8, 4, 1024, 356)]  # fmt: skip
"""KV heads, query heads of each, tokens, sequences"""
UNEVEN = [(32, 1, 16), (32, 1, 32), (32, 1, 64), (32, 1, 110), (32, 1, 165), (8, 4, 32), (8, 4, 128), (8, 4, 300)]
"""KV heads, query heads of each, sequences, whose contexts are drawn from SPREAD, the longest first"""
SPREAD = (300, 2500)
SPLITS = (1, 3, 8)
SHARES = {"bf16": (2, 4), "int8": (4, 8), "int4": (4, 8)}
WIDTH = 4096
LAYERS = 8
ROTATED_BYTES = 1 << 29


def cases() -> Iterator[tuple[Case, bool]]:
    """With whether contexts are of many lengths."""
    for kv_heads, group, context, batch in SHAPES:
        yield from ((Case(dtype, batch, kv_heads, group, context), False) for dtype in SHARES)
    for kv_heads, group, batch in UNEVEN:
        yield from ((Case(dtype, batch, kv_heads, group, -(-SPREAD[1] // 64) * 64), True) for dtype in SHARES)


def rows_of(case: Case, uneven: bool) -> Rows:
    rows = make_rows(case, "cuda")
    if not uneven:
        return rows
    given = torch.Generator("cuda").manual_seed(1)
    contexts = torch.randint(*SPREAD, (case.batch,), device="cuda", generator=given).sort(descending=True)[0]
    last = contexts - 1
    slots = rows.block_tables.gather(1, (last // 64)[:, None])[:, 0].long() * 64 + last % 64
    return replace(rows, context=contexts.int(), positions=last, slots=slots)


def cuts_in_turn(case: Case, processors: int) -> dict[str, Tiling]:
    warps, stages = (2, 2) if case.dtype == "bf16" else (1, 1)
    cuts = {
        f"registers, {splits} splits": Tiling(8, 64, splits, warps, stages, prefetch=case.dtype == "int4")
        for splits in SPLITS
    }
    cuts |= {"staged, whole": StagedTiling.of(0), "staged, whole, 4 a multiprocessor": StagedTiling.of(0, places=4)}
    for shares in (2, *SHARES[case.dtype]):
        cuts[f"staged, {shares} a multiprocessor"] = StagedTiling.of(shares * processors // case.kv_heads)
    return cuts


def cuts_in_a_layer(case: Case, processors: int) -> dict[str, Tiling]:
    whole, of = StagedTiling.of(0), StagedTiling.of
    cuts: dict[str, Tiling] = {"whole": whole, "whole, early": replace(whole, early=True)}
    if case.dtype == "bf16":
        cuts |= {"registers": Tiling(8, 64, 1, 2, 2), "whole, early, 4 and no more": of(0, early=True, places=4)}
    if case.dtype == "int8":
        cuts |= {"whole, 10 and no more": of(0, places=10), "whole, early, 10 and no more": of(0, True, places=10)}
    for places in SHARES[case.dtype]:
        shares = places * processors // case.kv_heads
        cuts[f"{places} dealt out"] = of(shares)
        cuts[f"{places} dealt out, early"] = of(shares, early=True)
        cuts[f"{places} dealt out, early, no more"] = of(shares, early=True, places=places)
    return cuts


def measure(case: Case, ceiling: float, uneven: bool) -> dict[str, Any]:
    layers, rows = make_layers(case, "cuda", ROTATED_BYTES), rows_of(case, uneven)
    q = torch.randn(case.batch, case.kv_heads * case.group, case.head_dim, device="cuda")
    processors, times = torch.cuda.get_device_properties(0).multi_processor_count, {}

    def microseconds(cut: Tiling | None) -> float:
        runs = [partial(attention.attend, q, rows, one, case.head_dim**-0.5, None, None, cut) for one in layers]
        with launched_in_turn():
            return seconds_of(runs * max(1, 8 // len(runs)), "cuda", 7) * 1e6

    for name, cut in cuts_in_turn(case, processors).items():
        times[name] = microseconds(cut)
    return _found(case, rows, ceiling, uneven, times | {"chosen": microseconds(None)})


def _found(case: Case, rows: Rows, ceiling: float, uneven: bool, times: dict[str, float]) -> dict[str, Any]:
    floor = case.must_read_bytes() / (case.batch * case.context) * int(rows.context.sum()) / ceiling * 1e6
    return {**asdict(case), "uneven": uneven, "floor_us": floor, "us": times}


class Layer:
    """Product, store, attention and product for one new token a sequence, on weights and pages that no cache has."""

    def __init__(self, case: Case, uneven: bool, rotated_bytes: int = ROTATED_BYTES):
        self.case, self.pages = case, make_layers(case, "cuda", rotated_bytes)
        self.rows = replace(rows_of(case, uneven), compute=torch.bfloat16)
        self.heads = [case.kv_heads * case.group, case.kv_heads, case.kv_heads]
        self.hidden = torch.randn(case.batch, WIDTH, device="cuda", dtype=torch.bfloat16)

        def weights(rows: int, columns: int) -> list[Tensor]:
            return [torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16) * 0.02 for _ in range(LAYERS)]

        self.into = weights(sum(self.heads) * case.head_dim, WIDTH)
        self.out = weights(WIDTH, self.heads[0] * case.head_dim)

    def run(self, number: int, cut: Tiling | None) -> Tensor:
        pages: LayerPages = self.pages[number % len(self.pages)]
        sides = linear(self.hidden, self.into[number], None, "triton").unflatten(1, (-1, self.case.head_dim))
        q, k, v = sides.split(self.heads, dim=1)
        q = store(q, k, v, None, self.rows, pages, "triton")
        mixed = attention.attend(q, self.rows, pages, self.case.head_dim**-0.5, None, None, cut)
        return linear(mixed.flatten(1), self.out[number], None, "triton")


def measure_layer(case: Case, ceiling: float, uneven: bool) -> dict[str, Any]:
    layer, times = Layer(case, uneven), {}
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    cuts: dict[str, Tiling | None] = {**cuts_in_a_layer(case, processors), "chosen": None}
    for _ in range(2):
        for name, cut in cuts.items():
            seconds = seconds_of([partial(layer.run, number, cut) for number in range(LAYERS)], "cuda", 7)
            times[name] = min(seconds * 1e6, times.get(name, float("inf")))
    return _found(case, layer.rows, ceiling, uneven, times)


def compile_layers() -> None:
    """Side by side, the kernels of `measure_layer`: of each cache and shape of heads every cut, and products of all
    numbers of rows for which there is one."""
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    with compile_ahead(16):
        for dtype in SHARES:
            for kv_heads, group in ((32, 1), (8, 4)):
                for rows in FEW_ROWS:
                    layer = Layer(Case(dtype, rows, kv_heads, group, 64), False, 1)
                    for cut in cuts_in_a_layer(layer.case, processors).values() if rows == FEW_ROWS[0] else [None]:
                        layer.run(0, cut)


def sweep(ceiling: float, one: Callable[[Case, float, bool], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for case, uneven in cases():
        if case.must_read_bytes() < torch.cuda.mem_get_info()[0] // 2:
            yield one(case, ceiling, uneven)
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--layer", action="store_true", help="attention within a layer")
    options = parser.parse_args()
    if options.layer:
        compile_layers()
    begin, ceiling = time.perf_counter(), read_ceiling("cuda")
    report = Report(options.out, "cuda", ceiling)
    for row in sweep(ceiling, measure_layer if options.layer else measure):
        best = sorted((us, name) for name, us in row["us"].items() if name != "chosen")[:3]
        about = "uneven" if row["uneven"] else row["context"]
        print(f"{row['kv_heads']}x{row['group']} {about} B={row['batch']} {row['dtype']}: floor "
              f"{row['floor_us']:.1f} us, as chosen {row['us']['chosen']:.1f} "
              f"({row['floor_us'] / row['us']['chosen']:.0%}); best "
              + ", ".join(f"{name}: {us:.1f}" for us, name in best), flush=True)  # fmt: skip
        report.add(row)
        if time.perf_counter() - begin > options.seconds:
            break


if __name__ == "__main__":
    main()
