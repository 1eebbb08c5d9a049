"""What every peer's file shares: the jobs, the checkpoint, the report."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.load import SEED, Job, prompts, random_jobs

__all__ = ["Generate", "run_peer"]

Generate = Callable[[list[list[int]], list[Job]], list[int]]
"""prompts and what each wants -> how many tokens each got"""


def run_peer(package: str, make: Callable[[str, argparse.Namespace], Generate], describe: str) -> int:
    """Run the set through the engine that `make(checkpoint folder, arguments)` gives. Weights are random numbers of
    the same shape unless `--model` names a folder. 0 also where the package is not installed, which is said."""
    parser = argparse.ArgumentParser(description=describe)
    parser.add_argument("--model", help="a checkpoint's folder")
    parser.add_argument("--shape", default="7b", help="of random weights, where no model is named")
    parser.add_argument("--kv-cache-dtype", default="auto", help="in the peer's own words")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-num-batched-tokens", type=int, default=8192)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if find_spec(package) is None:
        print(f"{package} is not installed: nothing was measured")
        return 0
    with tempfile.TemporaryDirectory() as home:
        model = given.model or _made_up(Path(home), given.shape)
        report = _measure(make(model, given), given, model)
    report |= {"engine": package, "version": _version(package)}
    text = json.dumps(report, indent=1)
    print(text) if given.out is None else given.out.write_text(text + "\n")
    return 0


def _measure(generate: Generate, given: argparse.Namespace, model: str) -> dict[str, Any]:
    vocabulary = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
    jobs = random_jobs(given.requests, (256, 2048), (64, 512), SEED)
    short = [Job(300, 8)] * 4
    generate(prompts(short, vocabulary, SEED), short)  # untimed
    contents = prompts(jobs, vocabulary, SEED)
    begin = time.perf_counter()
    counts = generate(contents, jobs)
    seconds = time.perf_counter() - begin
    taken, given_out = sum(job.prompt_tokens for job in jobs), sum(counts)
    full = sum(count == job.output_tokens for count, job in zip(counts, jobs, strict=True))
    return {
        "command": " ".join(["python", *sys.argv]), "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": given.model or f"{given.shape}, random weights", "kv_cache_dtype": given.kv_cache_dtype,
        "duration": seconds, "completed": full, "failed": len(jobs) - full, "total_input_tokens": taken,
        "total_output_tokens": given_out, "request_throughput": full / seconds,
        "output_throughput": given_out / seconds, "total_token_throughput": (taken + given_out) / seconds,
    }  # fmt: skip


def _made_up(folder: Path, shape: str) -> str:
    from benchmarks.start import write_checkpoint

    write_checkpoint(folder, shape)
    config = folder / "config.json"
    named = {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-6}
    config.write_text(json.dumps(json.loads(config.read_text()) | named))
    return str(folder)


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
