"""How busy the GPU is over some decode steps, and with what: numbers, from torch's profiler."""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["busy_seconds", "profile_steps"]

_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_NAME = 120  # characters of a kernel's name that are kept


def busy_seconds(intervals: list[tuple[float, float]]) -> float:
    """Length of the union of (begin, end), in their unit."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def profile_steps(step: Callable[[], object], steps: int, top: int = 15) -> dict[str, Any]:
    """Time `steps` without the profiler, then as many with it. `busy_share` = union of the kernels' intervals over the
    profiled wall time; `kernel_share` = the kernels' time of a step over the time of a step without the profiler,
    which slows the host."""
    plain = _timed(step, steps)
    cuda = torch.cuda.is_available()
    kinds = [torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as profiler:
        wall = _timed(step, steps)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events = [event for event in json.loads(file.read_text())["traceEvents"] if event.get("cat") in _ON_DEVICE]
    return {
        "steps": steps, "step_ms": plain / steps * 1e3, "profiled_step_ms": wall / steps * 1e3,
        **_kernels(events, steps, plain, wall, top),
    }  # fmt: skip


def _kernels(events: list[dict], steps: int, plain: float, wall: float, top: int) -> dict[str, Any]:
    if not events:
        return {"busy_share": None, "kernel_share": None, "launches_per_step": 0, "kernels": []}
    spans = [(event["ts"], event["ts"] + event["dur"]) for event in events]  # microseconds
    busy = busy_seconds(spans) / 1e6
    total: defaultdict[str, float] = defaultdict(float)
    count: defaultdict[str, int] = defaultdict(int)
    for event in events:
        total[event["name"]] += event["dur"]
        count[event["name"]] += 1
    whole = sum(total.values())
    ranked = sorted(total, key=lambda name: -total[name])[:top]
    return {
        "busy_share": busy / wall, "kernel_share": busy / plain, "launches_per_step": len(events) / steps,
        "kernels": [
            {"name": name[:_NAME], "launches_per_step": count[name] / steps, "us_per_step": total[name] / steps,
             "share": total[name] / whole} for name in ranked
        ],
    }  # fmt: skip


def _timed(step: Callable[[], object], steps: int) -> float:
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin
