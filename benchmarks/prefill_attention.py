"""Attention of prompts over decoded keys and values: `python benchmarks/prefill_attention.py [--out FILE]`.

Every way of cutting our flash kernels is first checked against attention in fp32 (ragged chunks with longer contexts, a
window, groups of heads), then timed beside torch's FlashAttention-2, which takes the same inputs, and cuDNN's attention
of fixed length where all chunks are whole prompts of one length. bf16, heads of 128; q is fp32 for ours (`q16`: bf16),
as `store` returns it, and what FlashAttention-2 needs to round it comes on top (`rounding`). Times are medians over
replays of a CUDA graph. The rate counts what the causal triangle holds: 4 x 128 operations a head, query and key.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report import Report, need_gpu

need_gpu()

from benchmarks.kernels import seconds_of
from benchmarks.prefill_inputs import Inputs, Shape
from octavo.kernels.ahead import compile_ahead
from octavo.kernels.attention.triton_flash import FlashCut

__all__ = ["cuts", "main"]

WITHIN = 8e-3  # the norm of the difference over that of fp32's result
RAGGED = ((70, 70), (65, 1000), (300, 301), (1, 513), (257, 257), (128, 2048), (640, 705))
CHECKED = [  # the first two of the heads that are timed: a kernel is compiled for those
    Shape("ragged", 32, 1, RAGGED),
    Shape("ragged", 8, 4, RAGGED),
    Shape("ragged, window", 8, 4, RAGGED, 200),
    Shape("ragged, window", 4, 7, RAGGED, 77),
]
TIMED = [
    Shape(name, kv_heads, group, chunks)
    for kv_heads, group in ((32, 1), (8, 4))
    for name, chunks in (
        ("4 x 2048", ((2048, 2048),) * 4),
        ("1 x 8192", ((8192, 8192),)),
        ("16 x 512", ((512, 512),) * 16),
        ("2 x 4096 of 16384", ((4096, 16384),) * 2),
    )
]


def cuts() -> dict[str, FlashCut]:
    several = [FlashCut(128, keys, 8, stages) for keys, stages in ((64, 3), (64, 2), (128, 2))]
    several += [FlashCut(64, 64, 4, 2), FlashCut(64, 64, 4, 3), FlashCut(64, 128, 4, 2)]
    several += [FlashCut(128, keys, 8, stages, overlapped=True) for keys, stages in ((64, 2), (64, 4), (128, 2))]
    several += [FlashCut(64, 64, 4, 2, overlapped=True)]
    best = FlashCut(128, 128, 8, 2, overlapped=True)
    several += [replace(best, together_bytes=count << 20) for count in (8, 32, 1 << 10)]
    several += [replace(several[2], together_bytes=1 << 30)]
    return {_name(cut): cut for cut in several}


def _name(cut: FlashCut) -> str:
    kind = "overlapped" if cut.overlapped else "triton"
    return f"{kind} {cut.rows}x{cut.keys}, {cut.warps} warps, {cut.stages} stages, {cut.together_bytes >> 20} MB"


def apart(got: Tensor, want: Tensor) -> float:
    """NaN where any number is not finite."""
    return ((got.float() - want).norm() / want.norm()).item()


def compile_all(several: dict[str, FlashCut], threads: int) -> None:
    """Side by side. What does not compile is told by `check`."""
    try:
        with compile_ahead(threads):
            for shape in CHECKED:
                inputs = Inputs.of(replace(shape, chunks=((64, 64),)))
                for cut in several.values():
                    inputs.ours(cut)()
    except Exception as error:
        print(f"not all compiled: {error}", flush=True)


def check(several: dict[str, FlashCut]) -> tuple[list[dict[str, Any]], set[str]]:
    """Every cut, and FlashAttention-2, on every shape; and which cuts are right."""
    found, wrong = [], set()
    for shape in CHECKED:
        inputs = Inputs.of(shape)
        want = inputs.exact()
        ways = {"FlashAttention-2": inputs.flash_attention_2()}
        ways |= {name: inputs.ours(cut) for name, cut in several.items() if name not in wrong}
        for name, run in ways.items():
            try:
                distance = apart(run(), want)
            except Exception as error:
                print(f"FAILED: {name}: {error}", flush=True)
                distance = float("nan")
            named = {"shape": shape.name, "kv_heads": shape.kv_heads, "group": shape.group, "window": shape.window}
            found.append(named | {"way": name, "apart": distance if distance == distance else None})
            if not distance < WITHIN:
                wrong.add(name)
                print(f"WRONG: {name} on {shape.name}: {distance:.1e} from fp32", flush=True)
    return found, set(several) - wrong


def yardsticks(inputs: Inputs) -> dict[str, Callable[[], Tensor]]:
    ways = {"FlashAttention-2": inputs.flash_attention_2(), "rounding": lambda: inputs.q.to(torch.bfloat16)}
    fixed = inputs.cudnn()
    if fixed is not None:
        ways["cuDNN, fixed"] = lambda: fixed().transpose(1, 2).flatten(0, 1)
    return ways


def measure(shape: Shape, several: dict[str, FlashCut], beside: bool) -> list[dict[str, Any]]:
    """Each cut, the fastest once more with q in 16 bits, and with `beside` what they are measured against."""
    inputs = Inputs.of(shape)
    want = inputs.flash_attention_2()().float()
    ways = yardsticks(inputs) if beside else {}
    ways |= {name: inputs.ours(cut) for name, cut in several.items()}
    rows = []
    for name, run in ways.items():
        distance = apart(run(), want)
        rows.append(_row(shape, name, seconds_of([run], "cuda", 7), distance))
    own = [row for row in rows if row["way"] in several]
    if own:
        best = min(own, key=lambda row: row["microseconds"])["way"]
        run = inputs.ours(several[best], inputs.q.to(torch.bfloat16))
        distance = apart(run(), want)
        rows.append(_row(shape, f"{best}, q16", seconds_of([run], "cuda", 7), distance))
    return rows


def _row(shape: Shape, way: str, seconds: float, distance: float) -> dict[str, Any]:
    rate = None if way == "rounding" else round(shape.operations() / seconds / 1e12, 1)
    named = {"shape": shape.name, "kv_heads": shape.kv_heads, "group": shape.group, "way": way}
    return named | {"microseconds": round(seconds * 1e6, 1), "tflop_per_s": rate, "apart": distance}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=12, help="that compile")
    parser.add_argument("--only", default="", help="cuts whose names have this in them")
    options = parser.parse_args()
    report = Report(options.out, "cuda", cuts={}, checks=[])
    chosen = {name: cut for name, cut in cuts().items() if options.only in name}
    # those scheduled by hand come last, so that one that never ends leaves the times of the others
    for overlapped in (False, True):
        several = {name: cut for name, cut in chosen.items() if cut.overlapped is overlapped}
        _run(several, report, options, beside=not overlapped)


def _run(several: dict[str, FlashCut], report: Report, options: argparse.Namespace, beside: bool) -> None:
    compile_all(several, options.threads)
    found, right = check(several)
    report.found["checks"] += found
    report.found["cuts"] |= {name: asdict(cut) for name, cut in several.items()}
    print(f"{len(right)} of {len(several)} cuts are right", flush=True)
    for shape in TIMED:
        rows = measure(shape, {name: cut for name, cut in several.items() if name in right}, beside)
        for row in rows:
            report.add(row)
        for row in sorted(rows, key=lambda row: row["microseconds"]):
            head = f"{row['kv_heads']:2} x {row['group']}  {row['shape']:18}  {row['way']:52}"
            rate = "" if row["tflop_per_s"] is None else f"{row['tflop_per_s']:6.0f} TFLOP/s  apart {row['apart']:.1e}"
            print(f"{head} {row['microseconds']:8.1f} us {rate}", flush=True)


if __name__ == "__main__":
    main()
