"""What all routes share: the engine's link, the tokenizer, the options, and what is checked of every request."""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request

from octavo.base.errors import OctavoError
from octavo.engine.sampling import SamplingParams
from octavo.serve.engine_link import EngineLink
from octavo.serve.errors import ApiError
from octavo.serve.exchange import Exchange
from octavo.serve.metrics import Metrics
from octavo.serve.options import ServeOptions
from octavo.serve.protocol.sampling import RequestFields
from octavo.serve.sse import until_disconnect
from octavo.serve.traces import Traces
from octavo.serve.words import Words

__all__ = ["Desk"]

T = TypeVar("T")


@dataclass
class Desk:
    options: ServeOptions
    link: EngineLink
    words: Words
    metrics: Metrics
    traces: Traces | None = None
    started: float = field(default_factory=time.monotonic)
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """Raises ApiError 503 until the engine was ready once, and while it is not."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", "shutting_down", retry_after=5)
        if self.link.facts is None or self.link.state != "ready":
            raise ApiError(503, f"the engine is {self.link.state}", "engine_unavailable", retry_after=2)
        return self.link.facts

    @property
    def longest(self) -> int:
        """Tokens that a request may have, new ones included. Raises ApiError 503."""
        return min(self.facts["model"]["max_model_len"], self.facts["limits"]["capacity_tokens"])

    @property
    def room(self) -> int:
        """Requests that may be open: those that run and those that wait."""
        facts = self.link.facts
        return self.options.max_num_queued_reqs + (
            facts["limits"]["max_num_seqs"] if facts else 1 << 20
        )  # no engine: 503 is the answer

    def check_model(self, name: str | None) -> str:
        """The name that answers carry. Raises ApiError 404."""
        names = self.options.names
        if name is not None and name not in names:
            raise ApiError(404, f"no model `{name}` here (have {', '.join(names)})", "model_not_found", "model")
        return name or names[0]

    def check_tokens(self, tokens: Sequence[int], param: str = "prompt", room: int = 1) -> None:
        """What the engine would refuse is refused here, before anything is sent."""
        limits, longest = self.facts["limits"], self.longest
        if not tokens:
            raise ApiError(400, f"{param}: it has no tokens; give at least one", "invalid_value", param)
        if len(tokens) + room > longest:
            raise ApiError(
                400, f"{param}: {len(tokens)} tokens, and the model takes {longest}, new ones included",
                "context_length_exceeded", param,
            )  # fmt: skip
        worst = max(tokens)
        if worst >= limits["vocab_size"]:
            raise ApiError(
                400, f"{param}: token id {worst} is outside the vocabulary [0, {limits['vocab_size']})",
                "invalid_value", param,
            )  # fmt: skip

    def check_params(self, params: dict[str, Any]) -> None:
        """Raises BadValue or ApiError for what the engine would refuse."""
        SamplingParams(**params)
        if max(params.get("logprobs") or 0, params.get("prompt_logprobs") or 0) > self.options.max_logprobs:
            raise ApiError(400, f"logprobs: at most {self.options.max_logprobs}", "invalid_value", "logprobs")
        vocab_size = self.facts["limits"]["vocab_size"]
        for name in ("stop_token_ids", "logit_bias"):
            outside = [token for token in params.get(name, ()) if token >= vocab_size]
            if outside:
                raise ApiError(
                    400, f"{name}: token id {outside[0]} is outside the vocabulary [0, {vocab_size})", "invalid_value",
                    name,
                )  # fmt: skip

    def exchange(
        self, prompts: list[list[int]], params: dict[str, Any], request: RequestFields, http: Request
    ) -> Exchange:
        """Ready to run, and in the state of `http` for its log line and its trace. Shares prefixes within its tenant
        and salt. Raises ApiError 429 when the queue is full."""
        salt = http.state.tenant + (request.cache_salt or "")
        made = Exchange(self.link, prompts, params, request.n or 1, salt, self.metrics)
        self.metrics.arrived()
        _ = self.facts  # 503
        made.check_room(self.room)
        http.state.exchange = made
        return made

    async def unless_gone(self, http: Request, work: Awaitable[T]) -> T:
        """The result of `work`; it is given up when the client leaves meanwhile."""
        doing = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(until_disconnect(http.receive))
        try:
            await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                doing.cancel()
                await asyncio.gather(doing, return_exceptions=True)
                raise ApiError(499, "the client has gone")
            return doing.result()
        finally:
            gone.cancel()
            doing.cancel()

    def headers(self, request: RequestFields) -> dict[str, str]:
        """Fields that mean nothing here are named, not dropped in silence."""
        unknown = [name for name in request.unknown_fields if name.isascii() and name.isprintable()]
        return {"X-Octavo-Ignored": ",".join(unknown)[:1024]} if unknown else {}

    async def check_all(self, prompts: list[list[int]], params: dict[str, Any], room: int = 1) -> None:
        """Everything that the engine could refuse; a grammar is compiled once, where it can be killed."""
        for tokens in prompts:
            self.check_tokens(tokens, room=room)
        try:
            self.check_params(params)
        except OctavoError as error:
            raise ApiError(400, error.message, "invalid_value") from None
        if "grammar" in params:
            await self.words.rehearse(params["grammar"])
