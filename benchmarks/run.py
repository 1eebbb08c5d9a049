"""`make bench`: prefill and decode speed of the whole engine on this machine, for each cache, as JSON and a table.

    python -m benchmarks.run --model smollm2 --dtypes bf16,int8,int4 --out runs/engine.json

Decode: B sequences with a context of N tokens each; the median time of a step, over `--steps` of them. Prefill: prompts
of N tokens, one after the other, prefix cache off. Request sets: benchmarks/throughput.py.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.arguments import caches
from octavo.base.device import cpu_model, physical_cores
from octavo.engine.llm import LLM
from octavo.engine.sampling import SamplingParams

__all__ = ["main"]

DECODE = ((1, 512), (1, 4096), (8, 512), (8, 2048), (32, 512))
PREFILL = (512, 4096)


def decode_row(llm: LLM, batch: int, context: int, steps: int) -> dict:
    params = SamplingParams(max_tokens=steps + 4, temperature=0, ignore_eos=True)
    for index in range(batch):
        llm.engine.add(f"b{index}", _tokens(llm, context, index), params)
    while any(request.pending > 1 or request.computed == 0 for request in llm.engine.requests.values()):
        llm.engine.step()
    llm.engine.step()
    times = []
    while len(times) < steps and len(llm.engine.requests) == batch:
        begin = time.perf_counter()
        llm.engine.step()
        times.append(time.perf_counter() - begin)
    llm.engine.drain()
    step = statistics.median(times)
    return {"kind": "decode", "batch": batch, "context": context, "step_ms": step * 1e3, "tokens_per_s": batch / step}


def prefill_row(llm: LLM, tokens: int, repeats: int = 3) -> dict:
    times = []
    for index in range(repeats):
        begin = time.perf_counter()
        llm.generate([_tokens(llm, tokens, index)], SamplingParams(max_tokens=1, temperature=0))
        times.append(time.perf_counter() - begin)
    best = statistics.median(times)
    return {"kind": "prefill", "batch": 1, "context": tokens, "step_ms": best * 1e3, "tokens_per_s": tokens / best}


def _tokens(llm: LLM, count: int, seed: int) -> list[int]:
    vocabulary = llm.source.spec.vocab_size
    return [(17 + 7919 * (at + 1) * (seed + 3)) % vocabulary for at in range(count)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtypes", type=caches, default="bf16,int8,int4", help="a K,V pair as int8/int4")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--out", default="runs/engine.json")
    args = parser.parse_args()
    options = {"enable_prefix_caching": False, "max_num_seqs": 64, "kv_cache_memory": "36864tok"}
    first = LLM(args.model, dtype=args.dtype, **options)
    rows = []
    for dtype in args.dtypes:
        llm = first.with_cache(kv_cache_dtype=dtype)
        prefill_row(llm, 64)  # kernels load here
        measured = [prefill_row(llm, tokens) for tokens in PREFILL]
        measured += [decode_row(llm, batch, context, args.steps) for batch, context in DECODE]
        for row in measured:
            rows.append({"kv_cache_dtype": dtype, "kernels": llm.cache.kernels, **row})
            print("{kv_cache_dtype:10} {kind:8} B={batch:<3} N={context:<5} {step_ms:9.1f} ms {tokens_per_s:9.0f} tok/s"
                  .format(**rows[-1]), flush=True)  # fmt: skip
    report = {
        "command": " ".join(["python -m benchmarks.run", *sys.argv[1:]]),
        "machine": {"cpu": cpu_model(), "cores": physical_cores(), "platform": platform.platform()},
        "model": first.source.name,
        "compute_dtype": first.dtype,
        "rows": rows,
    }
    target = Path(args.out)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
