"""How long storing takes where keys are balanced, by torch and by the matrix kernel cut in different ways:
`python benchmarks/store_matrix.py [--out FILE]`, under 90 seconds on a GPU, compiling included.

int4 with a matrix for the keys of each KV head (values rotated); beside it int8 and int4 that are only rotated, and
what was done before: torch turns queries and keys, a kernel encodes them. Shapes, rows and times are those of
benchmarks/store.py. Layers of a decode step have matrices of their own, together more than the L2 cache holds. Before a
variant is timed its queries and pages are compared with the reference's: `apart` is the distance of the queries
relative to their length, `other_codes` the share of bytes of the pages that differ. What is further off than fp32
should be is marked with `!`.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kernels import read_ceiling, seconds_of
from benchmarks.report import Report
from benchmarks.store import HEAD_DIM, Shape, make_layer, make_rows
from octavo.kernels.ahead import compile_ahead
from octavo.kernels.rows import Rope
from octavo.kernels.store import store
from octavo.kernels.store.reference import apply_rope
from octavo.kv.pool import LayerPages
from octavo.kv.transform import PLAIN, SideTransform

__all__ = ["main"]

FAR, FAR_CODES = 5e-6, 1e-3
LAYERS = 16
Run = Callable[[LayerPages], Tensor]


@dataclass(frozen=True)
class Variant:
    name: str
    dtype: str
    balanced: bool
    cut: Any = None
    by_torch: bool = False


def variants(gpu: bool) -> list[Variant]:
    plain = [Variant("int8 rotated", "int8", False), Variant("int4 rotated", "int4", False)]
    if not gpu:
        return [*plain, Variant("int4 balanced", "int4", True)]
    from octavo.kernels.store.triton import MatrixCut

    cuts = [MatrixCut(16, 16, 4), MatrixCut(16, 32, 8), MatrixCut(64, 16, 4), MatrixCut(128, 32, 8)]
    cuts += [MatrixCut(16, 32, warps, "bf16x6") for warps in (4, 8)]
    cuts += [MatrixCut(16, 64, 4, "bf16x3"), MatrixCut(32, 32, 4, "bf16x6"), MatrixCut(32, 64, 8, "bf16x3")]
    for precision in ("bf16x6", "bf16x3"):
        cuts += [MatrixCut(64, 16, 4, precision), MatrixCut(64, 32, 4, precision), MatrixCut(64, 32, 8, precision)]
        cuts += [MatrixCut(128, 16, 8, precision), MatrixCut(128, 32, 8, precision)]
        cuts += [MatrixCut(64, 64, 4, precision), MatrixCut(128, 64, 8, precision)]
    cuts += [MatrixCut(64, 16, 4, "tf32")]
    several = [*plain, Variant("int4 balanced, torch", "int4", True, by_torch=True), Variant("chosen", "int4", True)]
    return several + [Variant(_name(cut), "int4", True, cut) for cut in cuts]


def _name(cut: Any) -> str:
    extra = [cut.precision] if cut.precision != "split" else []
    return " ".join([f"{cut.vectors} rows, chunk {cut.chunk}, {cut.warps} warps", *extra])


def balance(kv_heads: int, device: str) -> SideTransform:
    noise = torch.randn(kv_heads, HEAD_DIM, HEAD_DIM, dtype=torch.float64, device=device)
    matrix = torch.eye(HEAD_DIM, dtype=torch.float64, device=device) + 0.3 * HEAD_DIM**-0.5 * noise
    return SideTransform(True, matrix.float(), torch.linalg.inv(matrix).mT.float().contiguous())


def make_shape(variant: Variant, rows: int, kv_heads: int) -> Shape:
    return Shape("decode" if rows <= 128 else "prefill", rows, variant.dtype, 32, kv_heads)


def make_layers(shape: Shape, balanced: bool, count: int, device: str) -> list[LayerPages]:
    """Pages of zeros; `balanced` keys, each layer's by a copy of one transform."""
    layers = [make_layer(shape, device) for _ in range(count)]
    for layer in layers:
        layer.pages.zero_()
    if not balanced:
        return layers
    side = balance(shape.kv_heads, device)
    assert side.matrix is not None and side.back is not None
    return [replace(layer, key=SideTransform(True, side.matrix.clone(), side.back.clone())) for layer in layers]


def make_step(shape: Shape, device: str) -> dict[str, Any]:
    """q, k, v, rope and rows, as `store` takes them."""
    torch.manual_seed(1)
    counts = (shape.heads, shape.kv_heads, shape.kv_heads)
    fused = torch.randn(shape.rows, sum(counts) * HEAD_DIM, device=device).to(torch.bfloat16)
    sides = fused.split([count * HEAD_DIM for count in counts], dim=1)
    angles = torch.rand(shape.rows, HEAD_DIM // 2, device=device) * 6
    q, k, v = (side.unflatten(1, (-1, HEAD_DIM)) for side in sides)
    return {"q": q, "k": k, "v": v, "rope": Rope(angles.cos(), angles.sin()), "rows": make_rows(shape, device)}


def runner(variant: Variant, step: dict[str, Any], device: str) -> Run:
    if device == "cpu":
        return lambda layer: store(**step, layer=layer, impl="reference")
    from octavo.kernels.store import triton

    def by_torch(layer: LayerPages) -> Tensor:
        q, k = (apply_rope(step[side], step["rope"], step["rows"].positions) for side in ("q", "k"))
        turned = {"q": layer.key.query(q), "k": layer.key.stored(k), "rope": None}
        return triton.store(**(step | turned), layer=replace(layer, key=PLAIN))

    return by_torch if variant.by_torch else lambda layer: triton.store(**step, layer=layer, cut=variant.cut)


def measure(variant: Variant, rows: int, kv_heads: int, device: str) -> dict[str, Any]:
    shape = make_shape(variant, rows, kv_heads)
    layers = make_layers(shape, variant.balanced, LAYERS if shape.kind == "decode" else 1, device)
    step = make_step(shape, device)
    run = runner(variant, step, device)
    spare = replace(layers[0], pages=torch.zeros_like(layers[0].pages))
    want, got = store(**step, layer=spare, impl="reference"), run(layers[0])
    apart = ((got - want).double().norm() / want.double().norm()).item()
    other = ((spare.pages != layers[0].pages).sum() / (spare.pages != 0).sum()).item()
    seconds = seconds_of([partial(run, layer) for layer in layers], device)
    cut = None if variant.cut is None else asdict(variant.cut)
    return {
        "variant": variant.name, "rows": rows, "heads": 32, "kv_heads": kv_heads, "cut": cut,
        "microseconds": round(seconds * 1e6, 2), "bytes": shape.moved_bytes(), "apart": apart, "other_codes": other,
    }  # fmt: skip


def compile_all(several: list[Variant], device: str) -> None:
    with compile_ahead(14):
        for kv_heads in (32, 8):
            for variant in several:
                for rows in (8, 2048) if variant.name == "chosen" else (8,):  # it chooses by the number of tokens
                    shape = make_shape(variant, rows, kv_heads)
                    (layer,) = make_layers(shape, variant.balanced, 1, device)
                    runner(variant, make_step(shape, device), device)(layer)


def table(results: list[dict[str, Any]], sizes: list[tuple[int, int]]) -> str:
    head = "".join(f"{f'{rows} x 32:{kv_heads}':>13}" for kv_heads, rows in sizes)
    lines = [f"{'us; rows x heads':40}{head}"]
    for name in dict.fromkeys(result["variant"] for result in results):
        cells = {(one["kv_heads"], one["rows"]): one for one in results if one["variant"] == name}
        line = f"{name:40}"
        for size in sizes:
            one = cells.get(size, {})
            wrong = one.get("apart", 0) > FAR or one.get("other_codes", 0) > FAR_CODES
            line += f"{one.get('microseconds', 'failed')!s:>12}{'!' if wrong else ' '}"
        lines.append(f"{line}  apart {max((one['apart'] for one in cells.values()), default=0):.1e}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = [(kv_heads, rows) for kv_heads in (32, 8) for rows in ((8, 128, 2048, 8192) if device == "cuda" else (4,))]
    several, ceiling = variants(device == "cuda"), read_ceiling(device)
    if device == "cuda":
        compile_all(several, device)
    report = Report(options.out, device, ceiling)
    for kv_heads, rows in sizes:
        for variant in several:
            try:
                report.add(measure(variant, rows, kv_heads, device))
            except Exception as error:  # a cut that this GPU has no room for: the others are worth knowing
                print(f"{variant.name}, {rows} rows: {type(error).__name__}: {error}", file=sys.stderr)
    print(table(report.found["results"], sizes))
    print(f"read ceiling: {ceiling / 1e9:.0f} GB/s")


if __name__ == "__main__":
    main()
