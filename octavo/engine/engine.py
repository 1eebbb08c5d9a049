"""The loop: plan, run, sample, advance. One step at a time, no state but its owners'."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from octavo.base.errors import CapacityError, RequestError
from octavo.engine.batch import build_batch
from octavo.engine.detokenizer import TextStream
from octavo.engine.request import FinishReason, Request, TokenEvent
from octavo.engine.runner import Runner
from octavo.engine.sampler import Sample, sample, top_logprobs, uniform
from octavo.engine.sampling import SamplingParams
from octavo.engine.scheduler import Scheduler, SchedulerLimits, StepPlan
from octavo.kv.pages import PageTable
from octavo.kv.prefix import PrefixIndex, root_key

if TYPE_CHECKING:
    from octavo.checkpoint.tokenizer import Tokenizer

__all__ = ["Engine", "EngineLimits"]


@dataclass(frozen=True)
class EngineLimits:
    """What one request, and all of them, may take. `capacity_tokens` is what the whole pool holds."""

    vocab_size: int
    max_model_len: int
    max_sequences: int
    max_batched_tokens: int
    page_tokens: int
    num_pages: int

    @property
    def capacity_tokens(self) -> int:
        return self.num_pages * self.page_tokens


class Engine:
    """Requests in, `TokenEvent`s out. Not thread-safe: one owner calls `add`, `abort` and `step`."""

    def __init__(
        self, runner: Runner, limits: EngineLimits, tokenizer: "Tokenizer | None" = None,
        eos_ids: tuple[int, ...] = (), prefix_caching: bool = True, seed: int = 0, debug: bool = False,
    ):  # fmt: skip
        self.runner, self.limits, self.tokenizer, self.eos_ids = runner, limits, tokenizer, eos_ids
        self.seed, self.debug = seed, debug
        self.pages = PageTable(limits.num_pages, PrefixIndex() if prefix_caching else None)
        self.scheduler = Scheduler(
            SchedulerLimits(limits.max_sequences, limits.max_batched_tokens, limits.page_tokens), self.pages
        )
        self.requests: dict[str, Request] = {}
        self.steps = 0
        self.on_logits: Callable[[Request, int, Tensor], None] | None = None
        """tests and evaluation: called with (request, position, logits row) for every row that was wanted"""
        self._arrivals = 0
        self._device = str(runner.pool.layers[0].pages.device)

    @property
    def busy(self) -> bool:
        return self.scheduler.busy

    def add(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, *, scores: bool = False, salt: str = "",
        reads_prefix: bool = True, score_from: int = 0,
    ) -> Request:  # fmt: skip
        """Queue a request. `scores`: it wants the log-probabilities of its prompt's positions from `score_from` on and
        no new token. Raises RequestError or CapacityError, and then nothing of it is kept."""
        if request_id in self.requests:
            raise RequestError(f"request id `{request_id}` is in use")
        tokens = self._check_prompt(prompt, scores)
        if not 0 <= score_from < len(tokens):
            raise RequestError(f"score_from {score_from} is no position of a prompt of {len(tokens)} tokens")
        self._check_params(params)
        longest = min(self.limits.max_model_len, self.limits.capacity_tokens)
        wanted = longest if params.max_tokens is None else len(tokens) + params.max_tokens
        self._arrivals += 1
        seed = params.seed if params.seed is not None else int(uniform(self.seed, self._arrivals) * 2**53)
        request = Request(
            request_id, tokens, params, self._arrivals, min(wanted, longest), seed,
            root_key(self.runner.pool.plan.fingerprint(), salt), scores, self._text_stream(tokens, params),
            reads_prefix, score_from,
        )  # fmt: skip
        self.requests[request_id] = request
        self.scheduler.add(request)
        return request

    def abort(self, request_id: str) -> TokenEvent | None:
        """End a request now; its pages are free at once. None if it is not known (it may just have ended)."""
        request = self.requests.get(request_id)
        return None if request is None else self._end(request, "abort", None)

    def step(self) -> list[TokenEvent]:
        """Run one step; what it gave each request, in the order of its rows. Nothing to run gives an empty list."""
        plan = self.scheduler.plan()
        if not plan.rows:
            return []
        self.steps += 1
        batch = build_batch(plan, self.limits.page_tokens, self._device)
        logits = self.runner.run(batch)
        events = self._read(plan, batch.readers, logits)
        if self.debug:
            self.pages.check()
        return events

    def _read(self, plan: StepPlan, readers: tuple[tuple[Request, int], ...], logits: Tensor) -> list[TokenEvent]:
        """Logits to tokens to events. Marks move first, so that a request that ends releases what it stored."""
        completes = {row.request for row in plan.rows if row.completes}
        first_position = {row.request: row.request.computed for row in plan.rows}
        self.scheduler.ran(plan)
        samplers: list[Request] = []
        last_rows: list[int] = []
        events: list[TokenEvent] = []
        begin = 0
        for request, count in readers:
            rows = logits[begin : begin + count]
            first = max(first_position[request], request.score_from)
            self._record_prompt(request, rows, first if count > 1 or request.wants_prompt else -1)
            if self.on_logits is not None:
                start = first if request.wants_prompt else request.computed - 1
                for offset, row in enumerate(rows):
                    self.on_logits(request, start + offset, row)
            if request in completes and request.scores:
                events.append(self._end(request, "stop", None))
            elif request in completes:
                samplers.append(request)
                last_rows.append(begin + count - 1)
            begin += count
        if samplers:
            chosen = sample(logits[last_rows], samplers, self.eos_ids)
            events += [self._advance(request, result) for request, result in zip(samplers, chosen, strict=True)]
        return events

    def _record_prompt(self, request: Request, rows: Tensor, position: int) -> None:
        """Log-probabilities of prompt positions, each once even if preemption makes them run again."""
        if not request.wants_prompt or position < 0:
            return
        logprobs = rows.log_softmax(-1)
        done = len(request.prompt_logprobs)
        if request.scores:
            done = request.score_from + sum(len(part) for part in request.scored)
        last = len(request.prompt) - (0 if request.scores else 1)
        keep = logprobs[max(done - position, 0) : max(last - position, 0)]
        if request.scores:
            request.scored.append(keep.clone())
            return
        count = min(request.params.prompt_logprobs or 0, rows.shape[-1])
        for offset, row in enumerate(keep):
            target = request.prompt[max(done, position) + offset + 1]
            request.prompt_logprobs.append(top_logprobs(row, target, count))

    def _advance(self, request: Request, result: Sample) -> TokenEvent:
        """Append a token; decide whether the request ends with it."""
        params, token = request.params, result.token
        request.append(token)
        if result.logprobs is not None:
            request.logprobs.append(result.logprobs)
        may_stop = request.output_count >= params.min_tokens
        ends = may_stop and (token in params.stop_token_ids or (token in self.eos_ids and not params.ignore_eos))
        text = ""
        if request.text is not None and not (ends and token in params.stop_token_ids):
            text = request.text.feed(token, may_stop)
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
        if self.tokenizer is None:
            if params.stop:
                raise RequestError("stop strings need a tokenizer, and this model has none", hint="use stop_token_ids")
            return None
        keep, skip = params.include_stop_str_in_output, params.skip_special_tokens
        return TextStream(self.tokenizer, prompt, tuple(params.stop), keep, skip)

    def _check_prompt(self, prompt: Sequence[int], scores: bool) -> tuple[int, ...]:
        limits = self.limits
        tokens = tuple(int(token) for token in prompt)
        if not tokens:
            raise RequestError("the prompt is empty", hint="give at least one token")
        outside = next((token for token in tokens if not 0 <= token < limits.vocab_size), None)
        if outside is not None:
            raise RequestError(f"token id {outside} is outside the vocabulary [0, {limits.vocab_size})")
        room = 0 if scores else 1  # a prompt that fills the model leaves no place for a new token
        if len(tokens) + room > limits.max_model_len:
            raise RequestError(
                f"the prompt has {len(tokens)} tokens and the model takes {limits.max_model_len}, new ones included",
                hint="shorten it or raise --max-model-len",
            )
        if len(tokens) + room > limits.capacity_tokens:
            raise CapacityError(
                f"the prompt has {len(tokens)} tokens and the whole cache holds {limits.capacity_tokens} "
                f"({limits.num_pages} pages of {limits.page_tokens})",
                hint="raise --kv-cache-memory or choose a smaller --kv-cache-dtype",
            )
        return tokens

    def _check_params(self, params: SamplingParams) -> None:
        for name, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            for token in ids:
                if token >= self.limits.vocab_size:
                    raise RequestError(
                        f"{name}: token id {token} is outside the vocabulary [0, {self.limits.vocab_size})"
                    )

    def drain(self) -> None:
        """Abort everything. Afterwards no page is held."""
        for request_id in list(self.requests):
            self.abort(request_id)
        assert self.pages.held == 0, f"{self.pages.held} pages are held by nobody"
