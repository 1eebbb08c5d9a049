"""Filling a cache to its last slot: B sequences of T tokens, by generation through the engine or by prefill."""

from collections.abc import Callable
from dataclasses import dataclass

from octavo.base.table import Table
from octavo.engine.batch import build_batch
from octavo.engine.engine import Engine
from octavo.engine.graphs import DecodeBuffers, GraphSet
from octavo.engine.limits import EngineLimits
from octavo.engine.request import Request
from octavo.engine.runner import Runner
from octavo.engine.sampling import SamplingParams
from octavo.engine.scheduler import Row, StepPlan
from octavo.kv.pages import PageTable
from octavo.kv.prefix import root_key

__all__ = ["FILLS", "Job", "generate", "prefill"]


@dataclass(frozen=True)
class Job:
    """`batch` sequences of `tokens` tokens; steps take up to `chunk` tokens. `advance` is told how many were stored."""

    batch: int
    tokens: int
    chunk: int
    vocab_size: int
    advance: Callable[[int], None]

    @property
    def prompt(self) -> tuple[int, ...]:
        """One text for every sequence: nothing is shared, as there is no prefix index. Ids below 256 are objects that
        Python has once."""
        return tuple(7 * position % min(self.vocab_size, 256) for position in range(self.tokens))


def generate(runner: Runner, job: Job, graphs: bool) -> int:
    """One prompt token and T generated (the last of them is not stored): pages held at the fullest moment."""
    pool = runner.pool
    page_tokens = pool.layouts[0].page_tokens
    limits = EngineLimits(
        job.vocab_size, job.tokens + 1, job.batch, max(job.chunk, job.batch), page_tokens, pool.num_pages
    )
    if graphs:
        device = str(pool.layers[0].pages.device)
        buffers = DecodeBuffers(job.batch, job.tokens + 1, page_tokens, device, runner.impl)
        runner.record(GraphSet((job.batch,), buffers))
    engine = Engine(runner, limits, prefix_caching=False)
    fullest = 0

    def watch(*_: object) -> None:
        nonlocal fullest
        fullest = max(fullest, engine.pages.held)

    engine.on_logits = watch
    params = SamplingParams(max_tokens=job.tokens, temperature=0, ignore_eos=True)
    for number in range(job.batch):
        engine.add(str(number), job.prompt[:1], params)
    while engine.busy:
        job.advance(len(engine.step()))
    assert engine.scheduler.preemptions == 0, f"{engine.scheduler.preemptions} preemptions in a pool that fits"
    return fullest


def prefill(runner: Runner, job: Job, graphs: bool) -> int:
    """Whole prompts, one after the other, in chunks: pages held at the end.

    Not by way of the scheduler: it admits a prompt only while each running sequence could still grow by a page, and
    this pool has none to spare.
    """
    pool = runner.pool
    page_tokens, device = pool.layouts[0].page_tokens, str(pool.layers[0].pages.device)
    pages, root = PageTable(pool.num_pages), root_key(pool.plan.fingerprint())
    for number in range(job.batch):
        params = SamplingParams(max_tokens=1, temperature=0)
        request = Request(str(number), job.prompt, params, number, job.tokens + 1, number, root)
        request.admit((), page_tokens)
        taken = pages.allocate(-(-job.tokens // page_tokens))
        assert taken is not None, f"{pages.available} pages are left for sequence {number} of {job.batch}"
        request.pages.extend(taken)
        while request.pending:
            plan = StepPlan((Row(request, min(job.chunk, request.pending)),))
            logits = runner.run(build_batch(plan, page_tokens, device))
            request.computed += plan.rows[0].count
            job.advance(plan.rows[0].count)
        logits.argmax(-1).tolist()  # as sampling would, and it waits for the device
    return pages.held


FILLS: Table[Callable[[Runner, Job, bool], int]] = Table("fill", {"generate": generate, "prefill": prefill})
