"""The memory table of a model's shape with random weights: `python benchmarks/memory.py --shape llama-7b --out FILE`.

What `octavo memory --shape` measures, for machines that have torch and little else.
"""

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report import machine
from octavo.evals.memory_probe import ProbeOptions, run_probe
from octavo.evals.memory_report import prove
from octavo.memory.shapes import SHAPES

__all__ = ["main"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="chinese-llama-alpaca-7b")
    parser.add_argument("--kv-cache-dtype", nargs="+", default=["bf16", "int8", "int8-static", "int4"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32, 48])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--fill", default="generate")
    parser.add_argument("--out", default="-")
    given = parser.parse_args()
    options = ProbeOptions(
        shape=(given.shape, SHAPES[given.shape]), dtypes=tuple(given.kv_cache_dtype),
        batch_sizes=tuple(given.batch_sizes), tokens=given.tokens, fill=given.fill,
    )  # fmt: skip
    begin, seen = time.perf_counter(), set()

    def progress(what: str, done: int, total: int) -> None:
        if what not in seen:
            seen.add(what)
            print(f"{time.perf_counter() - begin:.0f} s: {what}", file=sys.stderr, flush=True)

    found = prove(run_probe(options, progress)).as_dict()
    command = f"benchmarks/memory.py --shape {given.shape} --fill {given.fill}"
    found |= {"machine": machine(found["device"]), "command": command, "date": datetime.now(UTC).date().isoformat()}
    text = json.dumps(found, indent=1)
    print(text) if given.out == "-" else Path(given.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
