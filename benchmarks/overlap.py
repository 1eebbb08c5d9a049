"""Decode steps read one late against steps read at once: how long each takes, and what the host did meanwhile.

    python -m benchmarks.overlap --model smollm2 --batch 256 --context 1000 --out runs/overlap.json

`wait_ms` is the time of a step that the host waited for the device. Overlapped, a device is idle only in steps whose
host work (the other columns) takes longer than the device does.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

from octavo.base.device import cpu_model, physical_cores
from octavo.engine.llm import LLM
from octavo.engine.sampling import SamplingParams

__all__ = ["main"]

PARAMS = {"greedy": {"temperature": 0}, "sampled": {"temperature": 0.8}, "top_p": {"temperature": 0.8, "top_p": 0.95}}


def measure(llm: LLM, batch: int, context: int, steps: int, params: dict) -> dict:
    """Milliseconds of a decode step of `batch` sequences, and of its phases, the mean of `steps`."""
    engine, vocabulary = llm.engine, llm.source.spec.vocab_size
    wish = SamplingParams(max_tokens=steps + 16, ignore_eos=True, seed=1, **params)
    for number in range(batch):
        engine.add(str(number), [(17 + 7919 * (at + 1) * (number + 3)) % vocabulary for at in range(context)], wish)
    while not all(request.decoding for request in engine.requests.values()):
        engine.step()
    for _ in range(4):
        engine.step()
    engine.times.clear()
    begin = time.perf_counter()
    for _ in range(steps):
        engine.step()
    seconds = time.perf_counter() - begin
    phases = {name.removesuffix("_s") + "_ms": value / steps * 1e3
              for name, value in vars(engine.times).items() if name.endswith("_s")}  # fmt: skip
    engine.drain()
    return {"step_ms": seconds / steps * 1e3, **phases}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--kv-cache-dtype", default="int8")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--context", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--out", default="runs/overlap.json")
    args = parser.parse_args()
    tokens = args.batch * (-(-(args.context + args.steps + 16) // 64) + 1) * 64
    llm = LLM(args.model, kv_cache_dtype=args.kv_cache_dtype, kv_cache_memory=f"{tokens}tok", kv_self_test="off",
              max_num_seqs=args.batch, max_num_batched_tokens=8192, enable_prefix_caching=False)  # fmt: skip
    rows = []
    for name, params in PARAMS.items():
        for overlap in (False, True):
            llm.engine.overlap = overlap
            measured = measure(llm, args.batch, args.context, args.steps, params)
            rows.append({"params": name, "overlap": overlap, **measured})
            print(json.dumps(rows[-1]), flush=True)
    report = {
        "command": " ".join(["python -m benchmarks.overlap", *sys.argv[1:]]),
        "machine": {"cpu": cpu_model(), "cores": physical_cores(), "platform": platform.platform()},
        "device": llm.device, "model": llm.source.name, "batch": args.batch, "context": args.context, "rows": rows,
    }  # fmt: skip
    target = Path(args.out)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
