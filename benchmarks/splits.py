"""How attention of one new token a sequence should be cut: `python benchmarks/splits.py [--out FILE]`, on a GPU.

Head width 128, contexts of one length and of many. For each shape and cache the time with pages that come through
registers, by splits of a context; with staged pages, one program a context, and all pages dealt out evenly among so
many programs a multiprocessor; and as the engine cuts it. The floor is the bytes of the pages over what a kernel that
only reads reaches. Each launch begins when the one before it has ended.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report import Report, need_gpu

need_gpu()

from benchmarks.kernels import Case, launched_in_turn, make_layers, make_rows, read_ceiling, seconds_of
from octavo.kernels.attention import triton as attention
from octavo.kernels.attention.tiling import StagedTiling, Tiling

__all__ = ["main"]

SHAPES = [(32, 1, 2048, 8), (32, 1, 2048, 32), (32, 1, 2048, 128), (8, 4, 2048, 8), (8, 4, 2048, 32), (8, 4, 2048, 128),
          (32, 1, 1024, 356), (8, 4, 1024, 356)]  # fmt: skip
"""KV heads, query heads of each, tokens, sequences"""
UNEVEN = [(32, 1, 32), (32, 1, 64), (32, 1, 110), (32, 1, 165), (8, 4, 32), (8, 4, 128)]
"""KV heads, query heads of each, sequences, whose contexts are drawn from SPREAD, the longest first"""
SPREAD = (300, 2500)
SPLITS = (1, 3, 8)
SHARES = (2, 4, 8)
ROTATED_BYTES = 1 << 29


def measure(case: Case, ceiling: float, uneven: bool = False) -> dict[str, Any]:
    layers, rows = make_layers(case, "cuda", ROTATED_BYTES), make_rows(case, "cuda")
    if uneven:
        contexts = torch.randint(
            *SPREAD, (case.batch,), device="cuda", generator=torch.Generator("cuda").manual_seed(1)
        )
        rows = replace(rows, context=contexts.sort(descending=True)[0].int())
    q = torch.randn(case.batch, case.kv_heads * case.group, case.head_dim, device="cuda")
    processors, chosen, times = torch.cuda.get_device_properties(0).multi_processor_count, [], {}

    def microseconds(cut: Tiling | None) -> float:
        runs = [lambda one=one: attention.attend(q, rows, one, case.head_dim**-0.5, None, None, cut) for one in layers]
        with launched_in_turn():
            return seconds_of(runs * max(1, 8 // len(runs)), "cuda", 7) * 1e6

    choose = attention.choose_tiling
    attention.choose_tiling = lambda *given: chosen.append(choose(*given)) or chosen[-1]
    times["chosen"] = microseconds(None)
    attention.choose_tiling = choose
    warps, stages = (2, 2) if case.dtype == "bf16" else (1, 1)
    for splits in SPLITS:
        cut = Tiling(8, 64, splits, warps, stages, prefetch=case.dtype == "int4")
        times[f"registers, {splits} splits"] = microseconds(cut)
    times["staged, whole"] = microseconds(StagedTiling.of(0))
    for shares in SHARES:
        staged = StagedTiling.of(shares * processors // case.kv_heads)
        times[f"staged, {shares} a multiprocessor"] = microseconds(staged)
    floor = case.must_read_bytes() / (case.batch * case.context) * int(rows.context.sum()) / ceiling * 1e6
    return {**asdict(case), "uneven": uneven, "floor_us": floor, "chosen": asdict(chosen[-1]), "us": times}


def sweep(ceiling: float) -> Iterator[dict[str, Any]]:
    for kv_heads, group, context, batch in SHAPES:
        for dtype in ("int8", "int4", "bf16"):
            case = Case(dtype, batch, kv_heads, group, context)
            if case.must_read_bytes() < torch.cuda.mem_get_info()[0] // 2:
                yield measure(case, ceiling)
            torch.cuda.empty_cache()
    for kv_heads, group, batch in UNEVEN:
        for dtype in ("int8", "int4", "bf16"):
            yield measure(Case(dtype, batch, kv_heads, group, -(-SPREAD[1] // 64) * 64), ceiling, uneven=True)
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=100)
    options = parser.parse_args()
    begin, ceiling = time.perf_counter(), read_ceiling("cuda")
    report = Report(options.out, "cuda", ceiling)
    for row in sweep(ceiling):
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
