"""`POST /v1/chat/completions`."""

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from octavo.serve.desk import Desk
from octavo.serve.errors import ApiError
from octavo.serve.exchange import Answer, Exchange
from octavo.serve.protocol.chat import ChatRequest
from octavo.serve.sse import DONE, EventStream, data
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
        prompt = await chat_tokens(desk.words, body)
        params = _params(body)
        await desk.check_all([prompt], params)
        exchange = desk.exchange([prompt], params, body)
        identity = f"chatcmpl-{uuid.uuid4().hex}"
        head = {"id": identity, "object": "chat.completion", "created": int(time.time()), "model": name}
        headers = desk.headers(body)
        if body.stream:
            events = exchange.events()
            first = await desk.unless_gone(http, anext(events))
            head["object"] = "chat.completion.chunk"
            chunks = _stream(head, body, exchange, desk.words, (first, events))
            return EventStream(chunks, desk.options.client_timeout, headers)
        await desk.unless_gone(http, exchange.finish())
        usage = exchange.usage
        http.state.usage = {key: usage[key] for key in ("prompt_tokens", "completion_tokens")}
        choices = [_choice(number, answer, body, desk.words) for number, answer in enumerate(exchange.answers)]
        reply = {**head, "choices": choices, "usage": usage}
        return Response(msgspec.json.encode(reply), 200, headers, "application/json")

    return routes


async def chat_tokens(words: Words, body: ChatRequest) -> list[int]:
    """The conversation through the chat template. Raises RequestError."""
    variables = dict(body.chat_template_kwargs or {})
    variables["add_generation_prompt"] = bool(body.add_generation_prompt) and not body.continue_final_message
    messages = [message.plain() for message in body.messages]
    return await words.encode(await words.render(messages, variables), add_special_tokens=False)


def _params(body: ChatRequest) -> dict[str, Any]:
    params = body.sampling()
    params["max_tokens"] = body.most_tokens
    if body.logprobs:
        params["logprobs"] = body.top_logprobs or 0
    return params


def _choice(number: int, answer: Answer, body: ChatRequest, words: Words) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    logprobs = {"content": [_logprob(one, words) for one in answer.logprobs]} if body.logprobs else None
    return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": answer.finish}


async def _stream(
    head: dict[str, Any], body: ChatRequest, exchange: Exchange, words: Words, begun: tuple[Any, Any]
) -> AsyncGenerator[bytes, None]:
    """The role first, then what each event adds; `begun`: the first batch, already taken, and those that follow."""
    batch, events = begun
    shown = {"usage": None} if body.include_usage else {}
    try:
        for number in range(body.n or 1):
            role = {"index": number, "delta": {"role": "assistant", "content": ""}, "logprobs": None,
                    "finish_reason": None}  # fmt: skip
            yield data({**head, "choices": [role], **shown})
        while batch is not None:
            for number, event in batch:
                if event.text or event.finish or event.logprob:
                    yield data({**head, "choices": [_part(number, event, body, words)], **shown})
            batch = await anext(events, None)
        if body.include_usage:
            yield data({**head, "choices": [], "usage": exchange.usage})
        yield DONE
    finally:
        await events.aclose()


def _part(number: int, event: Event, body: ChatRequest, words: Words) -> dict[str, Any]:
    listed = None
    if body.logprobs and event.logprob is not None:
        listed = {"content": [_logprob(event.logprob, words)]}
    delta = {"content": event.text} if event.text else {}
    return {"index": number, "delta": delta, "logprobs": listed, "finish_reason": event.finish}


def _logprob(one: Logprob, words: Words) -> dict[str, Any]:
    return {**_piece(one.token, one.logprob, words), "top_logprobs": [_piece(*pair, words) for pair in one.top]}


def _piece(token: int, logprob: float, words: Words) -> dict[str, Any]:
    text = words.piece(token)
    whole = not text.startswith("token_id:")
    return {"token": text, "logprob": max(logprob, _LEAST_LOGPROB), "bytes": list(text.encode()) if whole else None}


def refuse_tools(body: ChatRequest) -> None:
    if body.tools and body.tool_choice != "none":
        raise ApiError(400, "tools are not served", "unsupported", "tools")
