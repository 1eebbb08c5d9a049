"""Random requests, aborts, shared prefixes and tiny pools, thousands of steps: no page lost, none with two writers.

The model is replaced by a ledger that knows for every slot of every page which token of which prefix was written
there; a step may only write slots that nobody else can read, and may only read what its own sequence wrote.
"""

import hashlib

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from octavo.engine.request import Request
from octavo.engine.sampling import SamplingParams
from octavo.engine.scheduler import Scheduler, SchedulerLimits
from octavo.kv.pages import PageTable
from octavo.kv.prefix import PrefixIndex, root_key

PAGE = 8
ROOT = root_key("ledger")


class Ledger(RuleBasedStateMachine):
    requests = Bundle("requests")

    @initialize(pages=st.integers(2, 14), sequences=st.integers(1, 6), budget=st.integers(6, 40), prefix=st.booleans(),
                late=st.booleans())  # fmt: skip
    def start(self, pages, sequences, budget, prefix, late):
        self.late, self.unread = late, []  # whether a step's tokens are known only when the next one is planned
        self.table = PageTable(pages, PrefixIndex() if prefix else None)
        self.scheduler = Scheduler(SchedulerLimits(sequences, budget, PAGE), self.table)
        self.written: dict[tuple[int, int], int] = {}  # (page, offset) -> digest of the sequence up to that token
        self.capacity = pages * PAGE
        self.count = 0
        self.live: dict[str, Request] = {}

    @rule(target=requests, length=st.integers(1, 60), family=st.integers(0, 2), new=st.integers(1, 40))
    def add(self, length, family, new):
        self.count += 1
        length = min(length, self.capacity - 1)
        prompt = tuple((family * 7 + at // 16) % 5 for at in range(length))
        most = min(length + new, self.capacity)
        request = Request(f"r{self.count}", prompt, SamplingParams(max_tokens=new), self.count, most, 0, ROOT)
        self.scheduler.add(request)
        self.live[request.id] = request
        return request

    @rule(request=requests)
    def abort(self, request):
        if request.id in self.live:
            self.scheduler.finish(self.live.pop(request.id), "abort")

    @rule(count=st.integers(1, 12))
    def steps(self, count):
        for _ in range(count):
            self.step()

    def step(self):
        plan = self.scheduler.plan()
        assert sum(row.count for row in plan.rows) <= self.scheduler.limits.max_batched_tokens
        assert plan.rows or not self.scheduler.busy or plan.preempted or self.unread, "there is work and nothing runs"
        for row in plan.rows:
            self.write(row.request, row.count)
        done = [row.request for row in plan.rows if row.completes]
        self.scheduler.ran(plan)
        known, self.unread = (self.unread, done) if self.late else (done, [])
        for request in known:
            if request.id in self.live:
                self.learn(request)
        self.table.check()

    def learn(self, request):
        self.scheduler.learned(request, self.token(request, len(request.tokens)))
        if len(request.tokens) >= request.max_length:
            self.scheduler.finish(self.live.pop(request.id), "length")
        elif request.tokens[-1] == 9 and len(request.tokens) % 3 == 0:  # nobody could know
            self.scheduler.finish(self.live.pop(request.id), "stop")

    @staticmethod
    def token(request, at):
        return request.tokens[at] if at < len(request.tokens) else at * 31 % 11

    def write(self, request, count):
        for at in range(request.computed + count):
            slot = (request.pages[at // PAGE], at % PAGE)
            digest = self.digest(request, at)
            if at >= request.computed:
                assert self.table.references(slot[0]) == 1, f"{request.id} writes page {slot[0]}, which others hold"
                self.written[slot] = digest
            assert self.written[slot] == digest, f"{request.id} reads at {at} what it did not write"

    def digest(self, request, at):
        tokens = bytes(self.token(request, i) for i in range(at + 1))
        return int.from_bytes(hashlib.blake2b(tokens, digest_size=8).digest(), "little")

    @invariant()
    def pages_add_up(self):
        if hasattr(self, "table"):
            self.table.check()
            owned = sum(len(request.pages) for request in self.live.values())
            assert self.table.held <= owned <= self.table.num_pages * max(len(self.live), 1)

    def teardown(self):
        if not hasattr(self, "table"):
            return
        for _ in range(20_000):
            if not self.scheduler.busy:
                break
            self.step()
        assert not self.scheduler.busy, "the queue never empties"
        assert self.table.held == 0, f"{self.table.held} pages are held at the end"


TestLedger = Ledger.TestCase
TestLedger.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_first_come_first_served():
    """Nobody overtakes: requests start in order of arrival, also when the head of the queue has to wait for pages."""
    table = PageTable(4)
    scheduler = Scheduler(SchedulerLimits(8, 64, PAGE), table)
    big, bigger, small = (
        Request(name, tuple([1] * length), SamplingParams(max_tokens=1), index, length + 1, 0, ROOT)
        for index, (name, length) in enumerate((("big", 20), ("bigger", 25), ("small", 2)))
    )
    for request in (big, bigger, small):
        scheduler.add(request)
    plan = scheduler.plan()
    assert [row.request.id for row in plan.rows] == ["big"]
    scheduler.ran(plan)
    scheduler.finish(big, "length")
    assert [row.request.id for row in scheduler.plan().rows][0] == "bigger"
