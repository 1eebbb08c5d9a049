"""Products of few rows, by cuBLAS and by the Triton kernel cut in different ways: `python benchmarks/linear.py
[--out FILE]`, on a GPU, about two minutes with compiling.

`--rows 96 128 178 256` asks about batches for which the engine leaves products to cuBLAS: of a weight with 4096 rows it
makes about as many programs as there are multiprocessors, each with all columns to run along. There is a third way
then: cuBLAS's batched product over shares of the columns, in fp32, whose sum is left out of the time.

The weights of a 7B and an 8B model in bf16, more of each than the L2 cache holds, one after another as a CUDA graph.
Each cut's product is checked against double precision before it is timed. The floor is the weight's bytes over what a
kernel that only reads reaches.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report import Report, need_gpu

need_gpu()

from benchmarks.kernels import read_ceiling, seconds_of
from octavo.kernels.ahead import compile_ahead
from octavo.kernels.linear import FEW_ROWS
from octavo.kernels.linear.triton import Tiling, choose_tiling, linear

__all__ = ["main"]

SHAPES = {"7b qkv": (12288, 4096), "7b o": (4096, 4096), "7b gate_up": (22016, 4096), "7b down": (4096, 11008),
          "7b head": (49984, 4096), "8b qkv": (6144, 4096), "8b gate_up": (28672, 4096),
          "8b down": (4096, 14336)}  # fmt: skip
WRONG = 5e-3


def cuts(rows: int) -> list[Tiling]:
    """Those of which some was best for some shape, and their neighbours."""
    narrow = [Tiling(16, 512, 1, 1, 3), Tiling(16, 512, 1, 1, 4), Tiling(16, 256, 1, 1, 4), Tiling(32, 128, 1, 4, 8)]
    wide = [Tiling(64, 256, 1, 4, 4), Tiling(64, 128, 2, 4, 6), Tiling(32, 128, 1, 4, 6), Tiling(64, 128, 1, 4, 4)]
    return {16: narrow + wide, 32: [*narrow[2:], *wide, Tiling(32, 256, 1, 2, 3)],
            64: [*wide[1:], Tiling(64, 128, 1, 4, 3), Tiling(128, 128, 1, 4, 4)]}.get(rows, many(rows))  # fmt: skip


def many(rows: int) -> list[Tiling]:
    """For 128 and 256 rows of x."""
    several = [Tiling(128, 64, splits, 8, 4) for splits in (2, 4, 8)] + [
        Tiling(64, 64, splits, 4, 5) for splits in (2, 4)
    ]
    return several + ([Tiling(128, 128, splits, 8, 3) for splits in (2, 4)] if rows <= 128 else [])


def in_shares(x: Tensor, weight: Tensor, shares: int) -> Tensor:
    """fp32 `[shares, rows, features]`, the product of each share of the columns."""
    width = x.shape[1] // shares
    left, right = x.unflatten(1, (shares, width)).transpose(0, 1), weight.unflatten(1, (shares, width)).permute(1, 2, 0)
    return torch.bmm(left, right, out_dtype=torch.float32)


def measure(name: str, rows: int, ceiling: float) -> dict[str, Any]:
    features, width = SHAPES[name]
    count = max(2, (400 << 20) // (features * width * 2))
    weights = [torch.randn(features, width, device="cuda", dtype=torch.bfloat16) * 0.02 for _ in range(count)]
    x = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
    want = x.double() @ weights[0].double().T
    block = _block(rows)
    times: dict[str, float] = {}

    def take(name: str, product: Any) -> None:
        got: Tensor = product(weights[0])
        error = ((got.double() - want).norm() / want.norm()).item()
        assert error < WRONG, f"{name}: {error} from the product"
        times[name] = seconds_of([lambda one=one: product(one) for one in weights] * 2, "cuda", 7) * 1e6

    take("cublas", lambda weight: functional.linear(x, weight))
    if rows <= FEW_ROWS[-1]:
        take("chosen", lambda weight: linear(x, weight, None))
    else:
        for shares in (2, 4):
            times[f"cublas, {shares} shares"] = seconds_of(
                [lambda one=one, shares=shares: in_shares(x, one, shares) for one in weights] * 2, "cuda", 7
            ) * 1e6  # fmt: skip
    for cut in cuts(block):
        take(str(astuple(cut)), lambda weight, cut=cut: linear(x, weight, None, cut))
    floor = features * width * 2 / ceiling * 1e6
    return {
        "shape": name,
        "rows": rows,
        "floor_us": floor,
        "chosen": astuple(choose_tiling(block, features)) if block in FEW_ROWS else None,
        "us": times,
    }


def _block(rows: int) -> int:
    return next((size for size in FEW_ROWS if size >= rows), 1 << (rows - 1).bit_length())


def sweep(ceiling: float, several: list[int]) -> Iterator[dict[str, Any]]:
    for rows in several:
        block = _block(rows)
        x, weight = (torch.randn(count, 4096, device="cuda", dtype=torch.bfloat16) for count in (rows, 4096))
        with compile_ahead(16):
            for cut in cuts(block):
                linear(x, weight, None, cut)
        for name in SHAPES:
            yield measure(name, rows, ceiling)
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    begin, ceiling = time.perf_counter(), read_ceiling("cuda")
    report = Report(options.out, "cuda", ceiling, cut="rows of the weight, columns, splits, warps, stages")
    for row in sweep(ceiling, options.rows):
        us, floor = row["us"], row["floor_us"]
        best = min((time, name) for name, time in us.items())
        print(f"{row['shape']:10} {row['rows']:3} rows: floor {floor:6.1f} us, cuBLAS {us['cublas']:6.1f} "
              f"({floor / us['cublas']:.0%}), "
              + (f"chosen {us['chosen']:6.1f} ({floor / us['chosen']:.0%}), " if "chosen" in us else "")
              + f"best {best[0]:.1f} {best[1]}", flush=True)  # fmt: skip
        report.add(row)
        if time.perf_counter() - begin > options.seconds:
            break


if __name__ == "__main__":
    main()
