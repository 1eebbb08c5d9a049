"""What another schedule would give: `python benchmarks/simulate.py --steps benchmarks/results/steps-7b-bf16-h200.json`.

The engine's own scheduler plans every step of the 300 requests (`throughput.py`), and a step takes what such steps took
in a run that was recorded with `throughput.py --steps FILE`: reading the contexts that decode at nearly the memory's
speed, and something for its rows, apart for steps with prompts. No model and no GPU. Steps unlike any that were
recorded cost what lies between those that were.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.load import SEED, Job, random_jobs
from octavo.base.errors import CapacityError
from octavo.engine.request import Request
from octavo.engine.sampling import SamplingParams
from octavo.engine.scheduler import Scheduler, SchedulerLimits
from octavo.kv.pages import PageTable

__all__ = ["Costs", "main", "simulate"]

KNOTS = (1, 16, 32, 64, 96, 128, 160, 192, 256, 320, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192, 16384)
"""rows of a step between which its time is taken to be a straight line"""


@dataclass(frozen=True)
class Costs:
    """Milliseconds, fitted to the steps of a run."""

    per_token: float
    """of a context that decodes"""
    decode: dict[int, float]
    """of a step without prompts, by its rows, beside the contexts"""
    mixed: dict[int, float]

    @classmethod
    def of(cls, steps: Sequence[Sequence[float]], per_token: float) -> "Costs":
        """Least squares for what contexts do not explain: the two grow together, a fit of both mistakes one for the
        other. The last step, which ends with the run, is left out."""
        rows = np.array(steps[:-1], dtype=float)
        rest = rows[:, 3] - per_token * rows[:, 1]
        return cls(per_token, *(_fitted(rows[kind, 0] + rows[kind, 2], rest[kind]) for kind in _kinds(rows)))

    def step(self, decoding: int, context: int, new: int) -> float:
        known = self.mixed if new else self.decode
        return self.per_token * context + float(np.interp(decoding + new, list(known), list(known.values())))


def _kinds(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which steps only decode, and which have prompts."""
    return rows[:, 2] == 0, rows[:, 2] > 0


def _fitted(counts: np.ndarray, milliseconds: np.ndarray) -> dict[int, float]:
    """Milliseconds at each knot that some step is near."""
    table = np.stack([np.interp(counts, KNOTS, one) for one in np.eye(len(KNOTS))], 1)
    used = np.flatnonzero(table.any(0))
    found = np.linalg.lstsq(table[:, used], milliseconds, rcond=None)[0]
    return {KNOTS[n]: value for n, value in zip(used, found.tolist(), strict=True)}


def simulate(jobs: Sequence[Job], costs: Costs, pool_tokens: int, limits: SchedulerLimits) -> dict[str, float]:
    """All requests at once, greedy and without a prefix in common: seconds, steps, generated tokens a second. Raises
    CapacityError where one needs more than the pool."""
    scheduler = Scheduler(limits, PageTable(pool_tokens // limits.page_tokens, None))
    for number, job in enumerate(jobs):
        params = SamplingParams(max_tokens=job.output_tokens, temperature=0, ignore_eos=True)
        longest = job.prompt_tokens + job.output_tokens
        prompt = (0,) * job.prompt_tokens
        scheduler.add(Request(str(number), prompt, params, number, longest, 0, b"", reads_prefix=False))
    milliseconds, steps, generated = 0.0, 0, 0
    while scheduler.busy:
        plan = scheduler.plan()
        if not plan.rows:
            raise CapacityError(f"the next request does not fit into a pool of {pool_tokens} tokens")
        decoding = [row.request.computed + 1 for row in plan.rows if row.request.decoding]
        new = sum(row.count for row in plan.rows) - len(decoding)
        milliseconds, steps = milliseconds + costs.step(len(decoding), sum(decoding), new), steps + 1
        complete = [row.request for row in plan.rows if row.completes]
        scheduler.ran(plan)
        for request in complete:
            scheduler.learned(request, 0)
            generated += 1
            if len(request.tokens) >= request.max_length:
                scheduler.finish(request, "length")
    seconds = milliseconds / 1e3
    return {"seconds": seconds, "steps": steps, "output_throughput": generated / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=Path, required=True, help="what `throughput.py --steps` wrote")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--max-num-seqs", type=int, default=512)
    parser.add_argument("--max-num-batched-tokens", nargs="+", type=int, default=[8192, 4096, 2048, 1024])
    parser.add_argument("--pool-tokens", nargs="+", type=int, help="by default that of the run")
    parser.add_argument("--ceiling", type=float, default=4597, help="GB/s of a kernel that only reads")
    parser.add_argument("--share", type=float, default=0.985, help="of it that attention reaches")
    given = parser.parse_args()
    costs, recorded = _read(given.steps, given.ceiling * given.share * 1e6)
    took = sum(step[3] for step in recorded["steps"]) / 1e3
    print(f"recorded: {len(recorded['steps'])} steps, {took:.2f} s")
    jobs = random_jobs(given.requests, (256, 2048), (64, 512), SEED)
    for pool in given.pool_tokens or [recorded["pool_tokens"]]:
        for budget in given.max_num_batched_tokens:
            limits = SchedulerLimits(given.max_num_seqs, budget, recorded["page_tokens"])
            try:
                found = simulate(jobs, costs, pool, limits)
            except CapacityError as error:
                sys.exit(f"{error}; the set's longest have 2048 + 512")
            print(
                f"pool {pool}, {budget:5} tokens a step: {found['seconds']:.2f} s, {found['steps']} steps, "
                f"{found['output_throughput']:.0f} output tok/s"
            )


def _read(file: Path, bytes_per_ms: float) -> tuple[Costs, dict[str, Any]]:
    """The costs of a recorded run, and its record."""
    try:
        recorded = json.loads(file.read_text())
        for name in ("pool_tokens", "page_tokens"):
            recorded[name] = int(recorded[name])
        return Costs.of(recorded["steps"], recorded["bytes_per_token"] / bytes_per_ms), recorded
    except (OSError, ValueError, LookupError, TypeError) as error:
        sys.exit(f"`{file}` is not what `throughput.py --steps` writes: {error!r}")


if __name__ == "__main__":
    main()
