"""Requests through an engine, and what was seen of them."""

import time
from collections import deque
from typing import Any

from benchmarks.load import SEED, Job, prompts
from benchmarks.profiling import profile_steps
from benchmarks.serving_report import Record
from octavo.engine.engine import Engine
from octavo.engine.sampling import SamplingParams

__all__ = ["profile", "run_jobs", "steps_of"]


def steps_of(engine: Engine) -> int:
    times = getattr(engine, "times", None)
    return times.steps if times is not None else getattr(engine, "steps", 0)


def run_jobs(engine: Engine, jobs: list[Job], until: float) -> tuple[list[Record], dict[str, Any]]:
    """Add each job when it is due and step until all have ended, or the clock (perf_counter) reaches `until`; what was
    seen of each, and of the run."""
    contents = prompts(jobs, engine.limits.vocab_size, SEED)
    records = {f"r{number}": Record(job) for number, job in enumerate(jobs)}
    queue = deque(sorted(zip(records, contents, strict=True), key=lambda item: records[item[0]].job.arrival))
    held, peak, first_step = [], 0, steps_of(engine)
    begin = time.perf_counter()
    stepping = 0.0
    while (queue or engine.busy) and time.perf_counter() < until:
        now = time.perf_counter() - begin
        while queue and records[queue[0][0]].job.arrival <= now:
            name, tokens = queue.popleft()
            records[name].added = now
            params = SamplingParams(max_tokens=records[name].job.output_tokens, temperature=0, ignore_eos=True)
            held.append(engine.add(name, tokens, params))
        if not engine.busy:
            time.sleep(min(max(records[queue[0][0]].job.arrival - now, 0), 0.01))
            continue
        before = time.perf_counter()
        events = engine.step()
        after = time.perf_counter()
        stepping += after - before
        for event in events:
            _note(records[event.request_id], event.token is not None, event.finish_reason is not None, after - begin)
        peak = max(peak, len(engine.scheduler.running))
    seconds, stopped = time.perf_counter() - begin, bool(queue or engine.busy)
    engine.drain()
    steps = steps_of(engine) - first_step
    return list(records.values()), {
        "duration": seconds, "stopped": stopped, "steps": steps, "mean_step_ms": 1e3 * stepping / max(steps, 1),
        "preemptions": sum(request.preemptions for request in held), "peak_running": peak,
    }  # fmt: skip


def _note(record: Record, token: bool, ended: bool, at: float) -> None:
    if token:
        record.tokens.append(at)
    if ended:
        record.ended = at


def profile(engine: Engine, prompt_tokens: int, steps: int = 30) -> dict[str, Any]:
    """Decode steps of as many sequences as may run at once and fit, of `prompt_tokens` tokens each."""
    room = engine.limits.capacity_tokens // (prompt_tokens + 4 * steps + engine.limits.page_tokens)
    count = max(1, min(engine.limits.max_sequences, room))
    jobs = [Job(prompt_tokens, 4 * steps)] * count
    params = SamplingParams(max_tokens=4 * steps, temperature=0, ignore_eos=True)
    waiting = {f"p{number}" for number in range(count)}
    for name, tokens in zip(sorted(waiting), prompts(jobs, engine.limits.vocab_size, SEED + 1), strict=True):
        engine.add(name, tokens, params)
    begin = steps_of(engine)
    while waiting and engine.busy and steps_of(engine) - begin < 100_000:
        waiting -= {event.request_id for event in engine.step()}
    for _ in range(3):
        engine.step()
    try:
        found = profile_steps(engine.step, steps)
    finally:
        engine.drain()
    return {"batch": count, "context": prompt_tokens, **found}
