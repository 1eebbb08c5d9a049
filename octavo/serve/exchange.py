"""One HTTP request's dealings with the engine: its prompts sent, `n` answers of each, their events read back."""

import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from octavo.base.errors import OctavoError
from octavo.serve.engine_link import EngineLink
from octavo.serve.errors import ApiError
from octavo.serve.inbox import Inbox
from octavo.serve.metrics import Metrics
from octavo.serve.wire import Event, Logprob

__all__ = ["Answer", "Exchange"]


@dataclass
class Answer:
    """One choice as far as it has come."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    prompt_logprobs: list[Logprob] | None = None
    finish: str | None = None
    cached_tokens: int = 0

    def take(self, event: Event) -> None:
        self.text += event.text
        if event.token is not None:
            self.tokens.append(event.token)
        if event.logprob is not None:
            self.logprobs.append(event.logprob)
        if event.prompt_logprobs is not None:
            self.prompt_logprobs = event.prompt_logprobs
        self.cached_tokens = self.cached_tokens if event.cached_tokens is None else event.cached_tokens
        self.finish = event.finish or self.finish


class Exchange:
    """Choice `p * n + i` is answer i of prompt p. The first answer of a prompt goes ahead: once its prompt is stored,
    the others find it in the prefix cache. Only the link's `share` of answers, and of prompts that are still to be
    read, is with the engine at once; the rest is kept back here, so that a request for many answers does not make one
    for a single answer wait for all of them."""

    def __init__(
        self, link: EngineLink, prompts: list[list[int]], params: dict[str, Any], n: int, salt: str, metrics: Metrics
    ):
        self.link, self.prompts, self.params, self.n, self.salt = link, prompts, params, n, salt
        self.metrics = metrics
        self._arrived = time.monotonic()
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
        self.answers = [Answer() for _ in range(len(prompts) * n)]
        self._inbox = Inbox()
        self._open: dict[int, int] = {}
        self._unread: dict[int, int] = {}
        """tokens of the prompts that the engine has and of which no answer has begun"""
        self._kept_back = 0
        self.first_latencies: dict[str, float] = {}
        """of the first choice to have a token, seconds: in the queue, in the prefill, until its first token"""

    def check_room(self, room: int) -> None:
        """Raises ApiError 429 if the queue is full, 400 if it could never hold this request."""
        wanted = len(self.answers)
        if wanted > room:
            raise ApiError(400, f"the request asks for {wanted} answers and the server takes {room} at once")
        if self.link.open_requests + wanted > room:
            raise ApiError(429, f"{self.link.open_requests} requests are open and {room} may be; try again",
                           "queue_full", retry_after=1)  # fmt: skip

    async def events(self) -> AsyncGenerator[list[tuple[int, Event]], None]:
        """Batches of (choice, event) until all are finished. Leaving early aborts the rest. Raises EngineGone and
        Refusal."""
        ready = deque(range(0, len(self.answers), self.n))
        reason = "abort"  # of what does not come to its end, unless an error is why
        try:
            self._keep_back(len(self.answers))
            while ready or self._open:
                while ready and self._may_send(ready[0]):
                    self._send(ready.popleft())
                batch = await self._inbox.take()
                for choice, event in batch:
                    self.answers[choice].take(event)
                    self._measure(choice, event)
                    self._unread.pop(choice, None)
                    if event.queue_seconds is not None and choice % self.n == 0:
                        ready.extendleft(range(choice + self.n - 1, choice, -1))
                    if event.finish is not None:
                        self._open.pop(choice, None)
                yield batch
        except OctavoError:
            reason = "error"
            raise
        finally:
            self.metrics.given_up(reason, sum(answer.finish is None for answer in self.answers))
            self._keep_back(-self._kept_back)
            for request_id in self._open.values():
                self.link.abort(request_id)

    def _measure(self, choice: int, event: Event) -> None:
        now = time.monotonic()
        if event.queue_seconds is not None:
            self._first[choice] = now
            prefill = event.prefill_seconds or 0.0
            self.metrics.first_token(now - self._arrived, event.queue_seconds, prefill)
            if not self.first_latencies:
                self.first_latencies = {
                    "queue": event.queue_seconds, "prefill": prefill, "first": now - self._arrived
                }  # fmt: skip
        elif event.token is not None:
            self.metrics.gap(now - self._last[choice], 1)
        self._last[choice] = now
        if event.finish is not None:
            prompt, answer = self.prompts[choice // self.n], self.answers[choice]
            self.metrics.finished(
                event.finish, now - self._arrived, now - self._first.get(choice, now), len(prompt), len(answer.tokens)
            )

    async def finish(self) -> list[Answer]:
        """All answers, whole."""
        async for _ in self.events():
            pass
        return self.answers

    def _may_send(self, choice: int) -> bool:
        share = self.link.share
        reads = choice % self.n == 0 and sum(self._unread.values()) + self._prompt_tokens(choice) > share.prompt_tokens
        return not self._open or (len(self._open) < share.answers and not reads)

    def _prompt_tokens(self, choice: int) -> int:
        return len(self.prompts[choice // self.n])

    def _send(self, choice: int) -> None:
        params = self.params
        if choice % self.n == 0:
            self._unread[choice] = self._prompt_tokens(choice)
        if "seed" in params and choice % self.n:
            params = {**params, "seed": params["seed"] + choice % self.n}
        self._keep_back(-1)
        self._open[choice] = self.link.submit(self._inbox, choice, self.prompts[choice // self.n], params, self.salt)

    def _keep_back(self, more: int) -> None:
        self._kept_back += more
        self.link.kept_back += more

    @property
    def complete(self) -> bool:
        """Whether every answer came to its end."""
        return all(answer.finish is not None for answer in self.answers)

    @property
    def usage(self) -> dict[str, Any]:
        """As OpenAI counts: each prompt once."""
        prompt = sum(map(len, self.prompts))
        output = sum(len(answer.tokens) for answer in self.answers)
        cached = sum(answer.cached_tokens for answer in self.answers[:: self.n])
        return {
            "prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": cached},
        }  # fmt: skip
