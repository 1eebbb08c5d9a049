"""`POST /v1/chat/completions`."""

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from octavo.base.errors import RequestError
from octavo.serve.desk import Desk
from octavo.serve.exchange import Answer, Exchange
from octavo.serve.protocol.chat import ChatRequest
from octavo.serve.sse import DONE, EventStream, data
from octavo.serve.structure import grammar_json, grammar_of
from octavo.serve.tool_use import ToolUse
from octavo.serve.tools import prepare_messages
from octavo.serve.wire import Event, Logprob
from octavo.serve.words import Words

__all__ = ["chat_tokens", "router"]

_LEAST_LOGPROB = -9999.0


def router(desk: Desk) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/chat/completions", summary="Answer a conversation.")
    async def chat(body: ChatRequest, http: Request) -> Response:
        name = desk.check_model(body.model)
        _ = desk.facts  # 503 before any work
        use = _tool_use(desk, body)
        prompt = await chat_tokens(desk.words, body, use, desk.longest)
        params = _params(body, use)
        await desk.check_all([prompt], params)
        exchange = desk.exchange([prompt], params, body, http)
        identity = f"chatcmpl-{uuid.uuid4().hex}"
        head = {"id": identity, "object": "chat.completion", "created": int(time.time()), "model": name}
        headers = desk.headers(body)
        if body.stream:
            events = exchange.events()
            first = await desk.unless_gone(http, anext(events))
            head["object"] = "chat.completion.chunk"
            chunks = _stream(_Voice(head, body, desk.words, use), exchange, (first, events))
            return EventStream(chunks, desk.options.client_timeout, headers)
        await desk.unless_gone(http, exchange.finish())
        voice = _Voice(head, body, desk.words, use)
        choices = [voice.choice(number, answer) for number, answer in enumerate(exchange.answers)]
        reply = {**head, "choices": choices, "usage": exchange.usage}
        return Response(msgspec.json.encode(reply), 200, headers, "application/json")

    return routes


def _tool_use(desk: Desk, body: ChatRequest) -> ToolUse:
    messages = prepare_messages([message.plain() for message in body.messages])
    return ToolUse.of(body, messages, desk.words.chat_template, desk.options.tool_call_parser)


async def chat_tokens(words: Words, body: ChatRequest, use: ToolUse, most: int) -> list[int]:
    """The conversation through the chat template. Raises RequestError, TooManyTokens beyond about `most` of them."""
    prompts = bool(body.add_generation_prompt) and not body.continue_final_message
    variables = {**(body.chat_template_kwargs or {}), **use.variables, "add_generation_prompt": prompts}
    text = await words.render(use.messages, variables)
    if body.continue_final_message:
        last = str(use.messages[-1]["content"])
        end = text.rfind(last) if last else -1
        if end < 0:
            raise RequestError("the chat template does not show the last message, so it cannot be continued")
        text = text[: end + len(last)]
    return await words.encode(text, most, add_special_tokens=False)


def _params(body: ChatRequest, use: ToolUse) -> dict[str, Any]:
    params = body.sampling()
    params["max_tokens"] = body.most_tokens
    if body.logprobs:
        params["logprobs"] = body.top_logprobs or 0
    grammar = grammar_of(body) or use.grammar
    if grammar is not None:
        params["grammar"] = grammar_json(grammar)
    return params


class _Voice:
    """Answers as the chat API writes them."""

    def __init__(self, head: dict[str, Any], body: ChatRequest, words: Words, use: ToolUse):
        self.head, self.body, self.words, self.use = head, body, words, use
        self.shown: dict[str, Any] = {"usage": None} if body.include_usage else {}
        self._calls = [use.stream() for _ in range(body.n or 1)]

    def choice(self, number: int, answer: Answer) -> dict[str, Any]:
        message = self.use.message(answer.text)
        if message.get("tool_calls") and answer.finish == "stop":
            answer.finish = "tool_calls"
        logprobs = {"content": [self._logprob(one) for one in answer.logprobs]} if self.body.logprobs else None
        return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": answer.finish}

    def role(self, number: int) -> bytes:
        return self._chunk(number, {"role": "assistant", "content": ""}, None, None)

    def parts(self, number: int, event: Event) -> list[bytes]:
        """What one event adds, as chunks."""
        listed, finish, writer = None, event.finish, self._calls[number]
        if self.body.logprobs and event.logprob is not None:
            listed = {"content": [self._logprob(event.logprob)]}
        if writer is None:
            if not (event.text or finish or listed):
                return []
            return [self._chunk(number, {"content": event.text} if event.text else {}, listed, finish)]
        deltas = writer.feed(event.text, last=finish is not None)
        if finish == "stop" and writer.called:
            finish = "tool_calls"
        if not deltas and (finish or listed):
            deltas = [{}]
        ends = [None] * (len(deltas) - 1) + [finish]
        tops = [listed] + [None] * (len(deltas) - 1)
        return [self._chunk(number, *one) for one in zip(deltas, tops, ends, strict=False)]

    def usage(self, exchange: Exchange) -> bytes:
        return data({**self.head, "choices": [], "usage": exchange.usage})

    def _chunk(self, number: int, delta: dict[str, Any], listed: Any, finish: str | None) -> bytes:
        choice = {"index": number, "delta": delta, "logprobs": listed, "finish_reason": finish}
        return data({**self.head, "choices": [choice], **self.shown})

    def _logprob(self, one: Logprob) -> dict[str, Any]:
        top = [self._piece(*pair) for pair in one.top]
        return {**self._piece(one.token, one.logprob), "top_logprobs": top}

    def _piece(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.words.piece(token)
        whole = not text.startswith("token_id:")
        return {"token": text, "logprob": max(logprob, _LEAST_LOGPROB), "bytes": list(text.encode()) if whole else None}


async def _stream(voice: _Voice, exchange: Exchange, begun: tuple[Any, Any]) -> AsyncGenerator[bytes, None]:
    """The role first, then what each event adds; `begun`: the first batch, already taken, and those that follow."""
    batch, events = begun
    try:
        for number in range(len(exchange.answers)):
            yield voice.role(number)
        while batch is not None:
            if voice.body.usage_so_far:
                voice.shown = {"usage": exchange.usage}
            for number, event in batch:
                for chunk in voice.parts(number, event):
                    yield chunk
            batch = await anext(events, None)
        if voice.body.include_usage:
            yield voice.usage(exchange)
        yield DONE
    finally:
        await events.aclose()
