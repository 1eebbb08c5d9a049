"""`POST /v1/completions`: text, token ids, lists of them; echo and prompt log-probabilities for harnesses."""

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from octavo.serve.desk import Desk
from octavo.serve.exchange import Answer, Exchange
from octavo.serve.protocol.completions import CompletionRequest
from octavo.serve.sse import DONE, EventStream, data
from octavo.serve.structure import grammar_json, grammar_of
from octavo.serve.wire import Event, Logprob
from octavo.serve.words import Words

__all__ = ["router"]

_LEAST_LOGPROB = -9999.0


def router(desk: Desk) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/completions", summary="Continue a text.")
    async def completions(body: CompletionRequest, http: Request) -> Response:
        name = desk.check_model(body.model)
        prompts = await _prompts(desk, body)
        params = _params(body)
        await desk.check_all(prompts, params, room=0 if body.max_tokens == 0 else 1)
        exchange = desk.exchange(prompts, params, body, http)
        head = {
            "id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": name,
        }  # fmt: skip
        headers = desk.headers(body)
        events = exchange.events()
        if body.stream:
            first = await desk.unless_gone(http, anext(events))
            chunks = _stream(head, body, exchange, _Words(desk.words, body, prompts), (first, events))
            return EventStream(chunks, desk.options.client_timeout, headers)
        await desk.unless_gone(http, exchange.finish())
        voice = _Words(desk.words, body, prompts)
        choices = [voice.choice(number, answer) for number, answer in enumerate(exchange.answers)]
        reply = {**head, "choices": choices, "usage": voice.usage(exchange)}
        return Response(msgspec.json.encode(reply), 200, headers, "application/json")

    return routes


async def _prompts(desk: Desk, body: CompletionRequest) -> list[list[int]]:
    """The ids of each prompt: all are text, or none is."""
    given = body.prompts
    texts = [prompt for prompt in given if isinstance(prompt, str)]
    if not texts:
        return [list(prompt) for prompt in given]  # type: ignore[arg-type]
    return await desk.words.encode_all(texts, desk.longest, body.add_special_tokens is not False)


def _params(body: CompletionRequest) -> dict[str, Any]:
    params = body.sampling()
    params["max_tokens"] = max(1, body.max_tokens) if body.max_tokens is not None else None
    grammar = grammar_of(body)
    if grammar is not None:
        params["grammar"] = grammar_json(grammar)
    if body.logprobs is not None:
        params["logprobs"] = body.logprobs
        if body.echo:
            params["prompt_logprobs"] = body.logprobs
    if body.prompt_logprobs is not None:
        params["prompt_logprobs"] = body.prompt_logprobs
    return params


async def _stream(
    head: dict[str, Any], body: CompletionRequest, exchange: Exchange, voice: "_Words", begun: tuple[Any, Any]
) -> AsyncGenerator[bytes, None]:
    """`begun`: the first batch of events, already taken, and those that follow."""
    batch, events = begun
    try:
        while batch is not None:
            for choice, event in batch:
                chunk = {**head, "choices": [voice.part(choice, event)]}
                if body.include_usage:
                    chunk["usage"] = voice.usage(exchange) if body.usage_so_far else None
                yield data(chunk)
            batch = await anext(events, None)
        if body.include_usage:
            yield data({**head, "choices": [], "usage": voice.usage(exchange)})
        yield DONE
    finally:
        await events.aclose()


class _Words:
    """Choices as the completions API writes them. With `max_tokens` 0 the one token that was generated is not shown."""

    def __init__(self, words: Words, body: CompletionRequest, prompts: list[list[int]]):
        self.words, self.body, self.prompts = words, body, prompts
        self.n, self.hides_output = body.n or 1, body.max_tokens == 0
        self._sent: dict[int, int] = {}

    def choice(self, number: int, answer: Answer) -> dict[str, Any]:
        prompt = self.prompts[number // self.n]
        text = "" if self.hides_output else answer.text
        if self.body.echo:
            text = self._prompt_text(prompt) + text
        made: dict[str, Any] = {"index": number, "text": text, "finish_reason": answer.finish, "logprobs": None}
        if self.hides_output:
            made["finish_reason"] = "length"
        if self.body.logprobs is not None:
            listed = [] if self.hides_output else list(answer.logprobs)
            before = self._echoed(prompt, answer.prompt_logprobs) if self.body.echo else []
            made["logprobs"] = self._logprobs([*before, *listed], 0)
        if self.body.prompt_logprobs is not None:
            made["prompt_logprobs"] = [
                None if one is None else self._ranked(one) for one in self._echoed(prompt, answer.prompt_logprobs)
            ]
        return made

    def part(self, number: int, event: Event) -> dict[str, Any]:
        """What one event adds."""
        first = event.queue_seconds is not None
        text = "" if self.hides_output else event.text
        listed: list[Any] = [] if event.logprob is None or self.hides_output else [event.logprob]
        if first and self.body.echo:
            prompt = self.prompts[number // self.n]
            text = self._prompt_text(prompt) + text
            listed = [*self._echoed(prompt, event.prompt_logprobs), *listed]
        made: dict[str, Any] = {"index": number, "text": text, "finish_reason": event.finish, "logprobs": None}
        if self.hides_output and event.finish:
            made["finish_reason"] = "length"
        if self.body.logprobs is not None:
            made["logprobs"] = self._logprobs(listed, self._sent.get(number, 0))
            self._sent[number] = self._sent.get(number, 0) + len(text)
        return made

    def usage(self, exchange: Exchange) -> dict[str, Any]:
        usage = exchange.usage
        if self.hides_output:
            usage |= {"completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}
        return usage

    def _prompt_text(self, prompt: list[int]) -> str:
        given = self.body.prompt
        return given if isinstance(given, str) else self.words.decode(prompt)

    def _echoed(self, prompt: list[int], given: list[Logprob] | None) -> list[Logprob | None]:
        """One entry for each token of the prompt; the first has no log-probability: nothing comes before it."""
        nothing = Logprob(prompt[0], 0.0, [])
        return [nothing if self.body.prompt_logprobs is None else None, *(given or [])]

    def _logprobs(self, listed: list[Logprob | None], offset: int) -> dict[str, Any]:
        tokens, values, tops, offsets = [], [], [], []
        for place, one in enumerate(listed):
            assert one is not None, "an entry without a token"
            piece = self.words.piece(one.token)
            unknown = place == 0 and self.body.echo and not one.top and one.logprob == 0.0 and offset == 0
            tokens.append(piece)
            values.append(None if unknown else max(one.logprob, _LEAST_LOGPROB))
            ranked = {self.words.piece(token): max(value, _LEAST_LOGPROB) for token, value in one.top}
            tops.append(None if unknown else {**ranked, piece: max(one.logprob, _LEAST_LOGPROB)})
            offsets.append(offset)
            offset += len(piece)
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def _ranked(self, one: Logprob) -> dict[str, Any]:
        entries = dict([*one.top, (one.token, one.logprob)])
        return {
            str(token): {"logprob": max(value, _LEAST_LOGPROB), "rank": rank, "decoded_token": self.words.piece(token)}
            for rank, (token, value) in enumerate(entries.items(), 1)
        }
