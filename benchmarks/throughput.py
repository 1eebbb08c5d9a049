"""Throughput of the whole engine with random weights: `python benchmarks/throughput.py --models 7b --out FILE`.

The engine is the one that serves: scheduler, pages, prefix cache, CUDA graphs, warm-up. 300 requests at once, prompts
of 256 to 2048 tokens, 64 to 512 new ones each, greedy, nothing shared. `--rate 8` gives Poisson arrivals; `--trace`
takes lengths and arrivals from a trace's file (`--rate-scale 2`: twice as fast). `--profile` says what the GPU does in
decode steps. On a CPU a tiny model runs a tiny set.
"""

import argparse
import gc
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.arguments import caches, models
from benchmarks.drive import profile, run_jobs
from benchmarks.load import SEED, Job, at_rate, random_jobs, read_trace, that_fit
from benchmarks.made_up import made_up_weights
from benchmarks.recording import StepRecorder
from benchmarks.report import Report
from benchmarks.serving_report import summary
from octavo.engine.build import LoadedEngine, LoadedWeights, build_engine
from octavo.engine.engine import Engine
from octavo.engine.options import EngineOptions

__all__ = ["main"]


def row(loaded: LoadedEngine, jobs: list[Job], until: float, recorder: StepRecorder | None = None) -> dict[str, Any]:
    """A few short requests first, untimed; then the jobs, noted by `recorder` if there is one."""
    engine, cache = loaded.engine, loaded.facts
    run_jobs(engine, [Job(min(300, cache.max_model_len // 2), 8)] * 4, float("inf"))
    timed = _times(engine)
    with recorder or nullcontext():
        records, run = run_jobs(engine, jobs, until)
    found = {**run, **summary(records, run["duration"])}
    found |= {
        "pool_tokens": cache.capacity_tokens, "pool_bytes": cache.allocated_bytes, "kernels": cache.kernels,
        "plan": cache.plan, "bytes_per_token": cache.bytes_per_token,
    }  # fmt: skip
    if timed is not None and (after := _times(engine)) is not None:
        found["times"] = {name: after[name] - timed[name] for name in timed}
    if loaded.weights.device != "cpu":
        found["reserved_bytes"] = torch.cuda.memory_reserved()
        found["peak_allocated_bytes"] = torch.cuda.max_memory_allocated()
    return found


def _times(engine: Engine) -> dict[str, float] | None:
    """The engine's own account of where the host's time went, if it keeps one."""
    times = getattr(engine, "times", None)
    return {k: v for k, v in asdict(times).items() if isinstance(v, int | float)} if is_dataclass(times) else None


def sweep(given: argparse.Namespace, jobs: list[Job], device: str) -> Iterator[dict[str, Any]]:
    """Every cache of every model, the weights made once; the run under way is stopped when the time is over."""
    begin = time.perf_counter()
    end, profiled = begin + given.seconds, not given.profile
    for name in given.models:
        _free(device)
        weights = None
        for dtype in given.dtypes:
            at = {"model": name, "kv_cache_dtype": dtype}
            if time.perf_counter() > end:
                yield {**at, "skipped": "out of time"}
                continue
            weights = weights or made_up_weights(name, device, given.max_model_len)
            try:
                found = measure(given, name, dtype, weights, jobs, end, not profiled)
            except Exception as error:  # one that fails must not take the others with it
                traceback.print_exc()
                found = {"failure": f"{type(error).__name__}: {error}"}
            profiled = profiled or "profile" in found
            yield {**at, "seconds_in": round(time.perf_counter() - begin), **found}
            _free(device)
        del weights


def measure(
    given: argparse.Namespace, name: str, dtype: str, weights: LoadedWeights, jobs: list[Job], end: float,
    profiling: bool,
) -> dict[str, Any]:  # fmt: skip
    before = time.perf_counter()
    loaded = build_engine(_options(given, name, dtype), weights)
    built, recorder = time.perf_counter() - before, None if given.steps is None else StepRecorder(loaded.engine)
    found: dict[str, Any] = {"build_seconds": built, **row(loaded, jobs, end, recorder)}
    if recorder is not None:
        about = {key: found[key] for key in ("pool_tokens", "bytes_per_token")}
        recorder.write(given.steps, model=name, kv_cache_dtype=dtype, page_tokens=loaded.facts.page_tokens, **about)
    if profiling:
        found["profile"] = profile(loaded.engine, min(1024, given.max_model_len // 4))
    return found


def _options(given: argparse.Namespace, name: str, dtype: str) -> EngineOptions:
    return EngineOptions(
        model=name, kv_cache_dtype=dtype, kv_cache_memory=given.kv_cache_memory,
        gpu_memory_utilization=given.gpu_memory_utilization, max_num_seqs=given.max_num_seqs,
        max_num_batched_tokens=given.max_num_batched_tokens, max_model_len=given.max_model_len,
        enforce_eager=given.enforce_eager,
    )  # fmt: skip


def _free(device: str) -> None:
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _jobs(given: argparse.Namespace) -> tuple[list[Job], dict[str, Any]]:
    """The jobs and how they came about."""
    if given.trace is not None:
        read = read_trace(given.trace, given.requests, given.rate_scale)
        kept = that_fit(read, given.max_model_len)
        about = {"trace": given.trace.name, "rate_scale": given.rate_scale, "left_out_too_long": len(read) - len(kept)}
        return kept, about
    short = (16, 96), (4, 24)
    ranges = short if given.tiny else ((256, 2048), (64, 512))
    jobs = random_jobs(given.requests, *ranges, SEED)
    about = {"prompt_tokens": ranges[0], "output_tokens": ranges[1], "seed": SEED, "rate": given.rate}
    return (at_rate(jobs, given.rate, SEED) if given.rate else jobs), about


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", type=models, default="7b,8b", help="of 7b, 8b, tiny")
    parser.add_argument("--dtypes", type=caches, default="bf16,int8,int4", help="a K,V pair as int8/int4")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--rate", type=float, help="requests a second, Poisson; all at once without it")
    parser.add_argument("--trace", type=Path, help="a trace with arrivals and lengths; its first --requests are taken")
    parser.add_argument("--rate-scale", type=float, default=1.0, help="how much faster than it happened")
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--kv-cache-memory", help="in the place of a share: bytes (24GiB) or tokens (100000tok)")
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-num-batched-tokens", type=int, default=8192)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--steps", type=Path, help="what each step of the last run held and took, for simulate.py")
    parser.add_argument("--profile", action="store_true", help="after the first run: 30 decode steps, kernel by kernel")
    parser.add_argument("--seconds", type=float, default=280, help="a run that is under way then is stopped")
    parser.add_argument("--tiny", action="store_true", help="a model and a set that a CPU runs in seconds")
    given = parser.parse_args()
    given.tiny = given.tiny or not torch.cuda.is_available()
    if given.tiny:
        given.models, given.requests, given.max_model_len = ("tiny",), min(given.requests, 12), 256
        given.max_num_seqs, given.max_num_batched_tokens = 8, 128
        given.kv_cache_memory = given.kv_cache_memory or "512tok"
    return given


def main() -> None:
    given = _arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    jobs, about = _jobs(given)
    options = {name: getattr(given, name) for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len")}
    about |= {"requests": len(jobs), "input_tokens": sum(job.prompt_tokens for job in jobs),
              "output_tokens_asked": sum(job.output_tokens for job in jobs)}  # fmt: skip
    report = Report(given.out, device, requests=about, options=options)
    failures = 0
    for found in sweep(given, jobs, device):
        print(_line(found), flush=True)
        report.add(found)
        failures += "failure" in found
    sys.exit(1 if failures else 0)


def _line(found: dict[str, Any]) -> str:
    head = f"{found['model']:4} {found['kv_cache_dtype']:9}"
    if why := found.get("skipped") or found.get("failure"):
        return f"{head} {why}"
    stopped = f"  stopped, {found['failed']} unfinished" if found["stopped"] else ""
    busy = found.get("profile", {}).get("busy_share")
    return (
        f"{found['seconds_in']:4} s  {head} {found['output_throughput']:8.0f} output tok/s "
        f"{found['total_token_throughput']:8.0f} tok/s  {found['duration']:6.1f} s  "
        f"{found['steps']} steps of {found['mean_step_ms']:.1f} ms  "
        f"ttft {found['median_ttft_ms'] or 0:.0f}  tpot {found['median_tpot_ms'] or 0:.1f} ms  "
        f"peak {found['peak_running']}  preempted {found['preemptions']}  pool {found['pool_tokens']}{stopped}"
        + (f"  GPU busy {busy:.0%}" if busy is not None else "")
    )


if __name__ == "__main__":
    main()
