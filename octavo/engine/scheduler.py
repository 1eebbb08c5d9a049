"""Who runs in the next step, and with which pages. Arithmetic over numbers: no torch, no schemes.

Plans may run one step ahead of what the host knows: a row whose token is promised (request.py) is planned like any
other, and a sequence whose last token is promised is left out.

One step carries up to `max_batched_tokens` new tokens: first one for each sequence that is decoding, in order of
arrival, then chunks of prompts that are under way, then new requests in order of arrival. A request that cannot have
its pages waits at the head of the queue and nobody overtakes it. When a running sequence needs a page and there is
none, the sequence that arrived last gives up its pages and is recomputed later.
"""

from collections import deque
from dataclasses import dataclass

from octavo.engine.request import FinishReason, Request, Status
from octavo.kv.pages import PageTable

__all__ = ["Row", "Scheduler", "SchedulerLimits", "StepPlan"]


@dataclass(frozen=True)
class SchedulerLimits:
    max_sequences: int
    max_batched_tokens: int
    page_tokens: int


@dataclass(frozen=True)
class Row:
    """`count` tokens of one request run now, starting at its first token that is not stored."""

    request: Request
    count: int

    @property
    def completes(self) -> bool:
        """Whether all its tokens are stored after this step, so that a new one can be sampled. Only before it ran."""
        return self.count == self.request.pending


@dataclass(frozen=True)
class StepPlan:
    rows: tuple[Row, ...]
    preempted: tuple[str, ...] = ()


class Scheduler:
    """Owns the queue and the running set; takes and releases pages in the PageTable it is given."""

    def __init__(self, limits: SchedulerLimits, pages: PageTable):
        self.limits = limits
        self.pages = pages
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.preemptions = 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def plan(self) -> StepPlan:
        """The next step. Its pages are taken; nothing has run yet."""
        step = _Step(self.limits.max_batched_tokens)
        decoding: list[Request] = []
        filling: list[Request] = []
        for request in self.running:
            if not request.closing:
                (decoding if request.decoding else filling).append(request)
        for request in (*decoding, *filling):
            self._grow(request, step)
        if not step.preempted:
            self._admit(step)
        return StepPlan(tuple(Row(request, count) for request, count in step.counts.items()), tuple(step.preempted))

    def ran(self, plan: StepPlan) -> None:
        """The step is queued on the device: move the marks, publish pages that are full and final.

        What is queued may count as stored. The device works in order, so a step that is launched later reads what this
        one writes, and also finds a page that was released meanwhile written to the end: whoever holds it next writes
        after that.
        """
        for row in plan.rows:
            row.request.ran(row.count)
            self._publish(row.request)

    def learned(self, request: Request, token: int) -> None:
        """A promised token is known."""
        request.append(token)
        self._publish(request)

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request wherever it is, and release its pages."""
        if request.status is Status.RUNNING:
            self.running.remove(request)
        elif request.status is Status.WAITING:
            self.waiting.remove(request)
        self.pages.release(request.finish(reason))

    def _grow(self, request: Request, step: "_Step") -> None:
        """Give a running request its tokens of this step, preempting later arrivals for pages if it must."""
        if request.status is not Status.RUNNING:  # preempted for an earlier one in this very step
            return
        count = min(request.pending, step.budget)
        if count == 0:
            return
        while not self._reserve(request, count):
            victim = self.running[-1]
            self._preempt(victim, step)
            if victim is request:
                return
        step.take(request, count)

    def _admit(self, step: "_Step") -> None:
        page_tokens = self.limits.page_tokens
        while self.waiting and step.budget > 0 and len(self.running) < self.limits.max_sequences:
            request = self.waiting[0]
            shared = self._match(request)
            # the whole of what is known must fit now, and a page for each running sequence to grow into: otherwise
            # the newcomer would only be preempted again
            needed = -(-len(request.tokens) // page_tokens) - len(shared)
            self.pages.share(shared)
            roomy = self.pages.available >= needed + len(self.running)
            fresh = self.pages.allocate(needed) if roomy else None
            if fresh is None:
                self.pages.release(shared)
                return
            self.waiting.popleft()
            request.admit(shared, page_tokens)
            request.pages.extend(fresh)
            self._insert(request)
            step.take(request, min(request.pending, step.budget))

    def _insert(self, request: Request) -> None:
        """Keep the running set in order of arrival: a preempted request comes back to its place."""
        at = len(self.running)
        while at > 0 and self.running[at - 1].arrival > request.arrival:
            at -= 1
        self.running.insert(at, request)

    def _match(self, request: Request) -> tuple[int, ...]:
        """Pages of the longest known prefix; at least one token is left to run, since its logits are wanted."""
        prefix = self.pages.prefix
        if prefix is None or not request.reads_prefix:
            return ()
        last = min(len(request.tokens) - 1, request.score_from) if request.wants_prompt else len(request.tokens) - 1
        full = last // self.limits.page_tokens
        hit = prefix.match(request.keys(full, self.limits.page_tokens))
        return hit.pages if hit else ()

    def _reserve(self, request: Request, count: int) -> bool:
        needed = -(-(request.computed + count) // self.limits.page_tokens) - len(request.pages)
        if needed <= 0:
            return True
        fresh = self.pages.allocate(needed)
        if fresh is None:
            return False
        request.pages.extend(fresh)
        return True

    def _preempt(self, victim: Request, step: "_Step") -> None:
        step.give_back(victim)
        self.running.remove(victim)
        self.pages.release(victim.preempt())
        self.waiting.appendleft(victim)
        self.preemptions += 1
        step.preempted.append(victim.id)

    def _publish(self, request: Request) -> None:
        if self.pages.prefix is None:
            return
        full = min(request.computed, len(request.tokens)) // self.limits.page_tokens
        if full <= request.published:
            return
        keys = request.keys(full, self.limits.page_tokens)
        for index in range(request.published, full):
            self.pages.prefix.publish(keys[index], request.pages[index])
        request.published = full


class _Step:
    """The step being planned: who has how many tokens, and what is left of the budget."""

    def __init__(self, budget: int):
        self.budget = budget
        self.counts: dict[Request, int] = {}
        self.preempted: list[str] = []

    def take(self, request: Request, count: int) -> None:
        self.counts[request] = count
        self.budget -= count

    def give_back(self, request: Request) -> None:
        self.budget += self.counts.pop(request, 0)
