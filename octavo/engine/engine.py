"""The loop: plan, build, launch, read. No state but its owners'.

With `overlap` a step is read one step late: while the device runs step n, the host plans, builds and launches step
n + 1, whose tokens of step n stay on the device; then it reads step n. docs/engine.md draws it.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING

from torch import Tensor

from octavo.base.errors import RequestError
from octavo.engine.batch import build_batch
from octavo.engine.detokenizer import Remembered, TextStream
from octavo.engine.in_flight import InFlight, StepTimes, record_prompt, take_off
from octavo.engine.limits import EngineLimits
from octavo.engine.request import FinishReason, Request, Status, TokenEvent
from octavo.engine.runner import Runner
from octavo.engine.sampler import Sample, uniform
from octavo.engine.sampling import SamplingParams
from octavo.engine.scheduler import Scheduler, SchedulerLimits
from octavo.kv.pages import PageTable
from octavo.kv.prefix import PrefixIndex, root_key

if TYPE_CHECKING:
    from octavo.checkpoint.tokenizer import Tokenizer
    from octavo.engine.grammar import Grammar, GrammarFactory

__all__ = ["Engine"]


class Engine:
    """Requests in, `TokenEvent`s out. Not thread-safe: one owner calls `add`, `abort` and `step`."""

    def __init__(
        self, runner: Runner, limits: EngineLimits, tokenizer: "Tokenizer | None" = None,
        eos_ids: tuple[int, ...] = (), prefix_caching: bool = True, seed: int = 0, debug: bool = False,
        overlap: bool | None = None,
    ):  # fmt: skip
        """`overlap`: by default where there is a device beside the host."""
        self.runner, self.limits, self.tokenizer, self.eos_ids = runner, limits, tokenizer, eos_ids
        self.seed, self.debug = seed, debug
        self.pages = PageTable(limits.num_pages, PrefixIndex() if prefix_caching else None)
        self.scheduler = Scheduler(
            SchedulerLimits(limits.max_sequences, limits.max_batched_tokens, limits.page_tokens), self.pages
        )
        self.requests: dict[str, Request] = {}
        self.times = StepTimes()
        self._texts = None if tokenizer is None else Remembered(tokenizer)
        self.on_logits: Callable[[Request, int, Tensor], None] | None = None
        """tests and evaluation: called with (request, position, fp32 logits row) for every row that was wanted;
        to be set while nothing runs. The row is the caller's during the call only"""
        self._arrivals = 0
        self._device = str(runner.pool.layers[0].pages.device)
        self.overlap = self._device != "cpu" if overlap is None else overlap
        self._flying: InFlight | None = None

    @property
    def busy(self) -> bool:
        return self._flying is not None or self.scheduler.busy

    def add(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, *, scores: bool = False, salt: str = "",
        reads_prefix: bool = True, score_from: int = 0, grammar: "Grammar | None" = None,
    ) -> Request:  # fmt: skip
        """Queue a request. `scores`: it wants the log-probabilities of its prompt's positions from `score_from` on and
        no new token. `grammar`: that of its params, if it was compiled elsewhere (it is not copied).
        Raises RequestError or CapacityError, and then nothing of it is kept."""
        if request_id in self.requests:
            raise RequestError(f"request id `{request_id}` is in use")
        tokens = self.limits.check_prompt(prompt, scores)
        if not 0 <= score_from < len(tokens):
            raise RequestError(f"score_from {score_from} is no position of a prompt of {len(tokens)} tokens")
        self.limits.check_params(params)
        longest = self.limits.longest
        wanted = longest if params.max_tokens is None else len(tokens) + params.max_tokens
        self._arrivals += 1
        seed = params.seed if params.seed is not None else int(uniform(self.seed, self._arrivals) * 2**53)
        request = Request(
            request_id, tokens, params, self._arrivals, min(wanted, longest), seed,
            root_key(self.runner.pool.plan.fingerprint(), salt), scores, self._text_stream(tokens, params),
            reads_prefix, score_from, grammar or self._grammar(params),
        )  # fmt: skip
        self.requests[request_id] = request
        self.scheduler.add(request)
        return request

    def abort(self, request_id: str) -> TokenEvent | None:
        """End a request now; its pages are free at once, also while a step with it runs (`Scheduler.ran` says why that
        is safe). None if it is not known (it may just have ended)."""
        request = self.requests.get(request_id)
        event = None if request is None else self._end(request, "abort", None)
        if not self.requests:
            self._flying = None  # nobody is left to read it
        return event

    def step(self) -> list[TokenEvent]:
        """Launch one step, and read the one before it, if there is one; with nothing to overlap, read this one too.
        What was read gave each request, in the order of its rows. Nothing to run gives an empty list."""
        before, self._flying = self._flying, self._launch()
        events = [] if before is None else self._read(before)
        if self._flying is not None and self._in_order(self._flying):
            launched, self._flying = self._flying, None
            events += self._read(launched)
        if not self.requests:
            self._flying = None  # the last ones ended by themselves; what still runs is for nobody
        if self.debug:
            self.pages.check()
        return events

    def _in_order(self, flight: InFlight) -> bool:
        """Whether a step must be read before the next one is planned."""
        return not self.overlap or self.on_logits is not None or flight.needs_ids

    def _launch(self) -> InFlight | None:
        times, begin = self.times, perf_counter()
        plan = self.scheduler.plan()
        times.plan_s += (planned := perf_counter()) - begin
        if not plan.rows:
            return None
        sampled = None if self._flying is None else self._flying.sampled
        batch = build_batch(plan, self.limits.page_tokens, self._device, sampled)
        times.build_s += (built := perf_counter()) - planned
        flight = take_off(batch.readers, self.runner.run(batch), self.eos_ids, self.on_logits is not None)
        times.launch_s += (launched := perf_counter()) - built
        self.scheduler.ran(plan)
        times.plan_s += perf_counter() - launched
        times.steps += 1
        return flight

    def _read(self, flight: InFlight) -> list[TokenEvent]:
        """Tokens to events. What came of a request that has ended meanwhile is dropped."""
        begin = perf_counter()
        flight.wait()
        self.times.wait_s += (done := perf_counter()) - begin
        events: list[TokenEvent] = []
        for reader, result, rows in flight.results():
            request = reader.request
            if request.status is Status.FINISHED:
                continue
            if rows is not None and request.wants_prompt:
                record_prompt(reader, rows)
            if rows is not None and self.on_logits is not None:
                for offset, row in enumerate(rows.float()):
                    self.on_logits(request, reader.position + offset, row)
            if result is not None:
                events.append(self._advance(request, result))
            elif reader.completes:
                events.append(self._end(request, "stop", None))
        self.times.read_s += perf_counter() - done
        return events

    def _advance(self, request: Request, result: Sample) -> TokenEvent:
        """Append a token; decide whether the request ends with it."""
        params, token, grammar = request.params, result.token, request.grammar
        if grammar is not None and not grammar.accept(token):
            return self._end(request, "error", None)
        self.scheduler.learned(request, token)
        if result.logprobs is not None:
            request.logprobs.append(result.logprobs)
        may_stop = request.output_count >= params.min_tokens
        ends = may_stop and (token in params.stop_token_ids or (token in self.eos_ids and not params.ignore_eos))
        text = ""
        if request.text is not None and not (ends and token in params.stop_token_ids):
            text = request.text.feed(token, may_stop)
        ends = ends or (grammar is not None and grammar.finished)
        if ends or (request.text is not None and request.text.stopped_by is not None):
            return self._end(request, "stop", result, text)
        if len(request.tokens) >= request.max_length:
            return self._end(request, "length", result, text)
        return TokenEvent(request.id, token, text, None, result.logprobs)

    def _end(self, request: Request, reason: FinishReason, result: Sample | None, text: str = "") -> TokenEvent:
        self.scheduler.finish(request, reason)
        del self.requests[request.id]
        if request.text is not None:
            text += request.text.close()
        token, logprobs = (result.token, result.logprobs) if result else (None, None)
        return TokenEvent(request.id, token, text, reason, logprobs)

    def _text_stream(self, prompt: tuple[int, ...], params: SamplingParams) -> TextStream | None:
        if self._texts is None:
            if params.stop:
                raise RequestError("stop strings need a tokenizer, and this model has none", hint="use stop_token_ids")
            return None
        keep, skip = params.include_stop_str_in_output, params.skip_special_tokens
        return TextStream(self._texts, prompt, tuple(params.stop), keep, skip)

    def _grammar(self, params: SamplingParams) -> "Grammar | None":
        return None if params.grammar is None else self.grammars.compile(params.grammar)

    @cached_property
    def grammars(self) -> "GrammarFactory":
        """Compiles grammars for this model. Raises RequestError where there is no tokenizer."""
        from octavo.engine.grammar import GrammarFactory

        if self.tokenizer is None:
            raise RequestError("a grammar needs a tokenizer, and this model has none")
        return GrammarFactory(self.tokenizer, self.limits.vocab_size, self.eos_ids)

    def drain(self) -> None:
        """Abort everything. Afterwards no page is held."""
        for request_id in list(self.requests):
            self.abort(request_id)
        self._flying = None
        assert self.pages.held == 0, f"{self.pages.held} pages are held by nobody"
