"""Everything that is not an answer of the model: health, models, metrics, tokens, the live state."""

import time
from importlib import metadata
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from octavo.serve.chat_routes import chat_tokens
from octavo.serve.desk import Desk
from octavo.serve.errors import ApiError
from octavo.serve.picture import picture_json
from octavo.serve.protocol.chat import ChatRequest
from octavo.serve.protocol.completions import DetokenizeRequest, TokenizeRequest
from octavo.serve.tool_use import ToolUse
from octavo.serve.tools import prepare_messages

__all__ = ["live", "router"]

_ALARM_SHARE = 5  # of the time after which a silent engine is ended
_MOST_TOKENS = 1 << 19


def router(desk: Desk) -> APIRouter:
    routes = APIRouter()

    @routes.get("/health", summary="200 while requests are taken, else 503.")
    async def health() -> Response:
        _ = desk.facts
        silent = desk.link.silent_seconds
        if silent > desk.link.timeout_seconds / _ALARM_SHARE:
            raise ApiError(503, f"the engine has said nothing for {silent:.0f} s", "engine_unavailable", retry_after=5)
        return _json({"status": "ok"})

    @routes.get("/version")
    async def version() -> Response:
        return _json({"version": metadata.version("octavo")})

    @routes.get("/v1/models")
    async def models() -> Response:
        return _json({"object": "list", "data": [_model(desk, name) for name in desk.options.names]})

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return _json(_model(desk, desk.check_model(name)))

    @routes.get("/metrics")
    async def metrics() -> Response:
        body, kind = desk.metrics.render()
        return Response(body, headers={"Content-Type": kind})

    @routes.get("/live", summary="The server's state now, with the pages of its cache.")
    async def live_state() -> Response:
        return _json(await live(desk))

    @routes.post("/tokenize")
    async def tokenize(body: TokenizeRequest, http: Request) -> Response:
        desk.check_model(body.model)
        longest = desk.facts["model"]["max_model_len"]
        if body.messages is not None:
            chat = ChatRequest.model_validate(
                {"messages": body.messages, "add_generation_prompt": body.add_generation_prompt}
            )
            use = ToolUse(prepare_messages(body.messages), {}, None, "none")
            ids = await chat_tokens(desk.words, chat, use, _MOST_TOKENS)
        else:
            ids = await desk.words.encode(body.prompt or "", _MOST_TOKENS, body.add_special_tokens)
        reply: dict[str, Any] = {"count": len(ids), "max_model_len": longest, "tokens": ids}
        if body.return_token_strs:
            reply["token_strs"] = [desk.words.piece(token) for token in ids]
        return _json(reply)

    @routes.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Response:
        desk.check_model(body.model)
        if body.tokens:
            vocabulary = desk.facts["limits"]["vocab_size"]
            worst = max(body.tokens)
            if worst >= vocabulary:
                raise ApiError(400, f"tokens: {worst} is outside the vocabulary [0, {vocabulary})", None, "tokens")
        return _json({"prompt": desk.words.decode(body.tokens)})

    @routes.get("/tokenizer_info", summary="What a client needs to render chats by itself.")
    async def tokenizer_info() -> Response:
        return _json(desk.words.about())

    return routes


async def live(desk: Desk) -> dict[str, Any]:
    """What the page and `octavo top` show. Answers in every state."""
    facts, stats = desk.link.facts, desk.link.last_stats
    model = None if facts is None else {"id": desk.options.names[0], **facts["model"]}
    return {
        "state": "stopping" if desk.draining else desk.link.state,
        "uptime_seconds": time.monotonic() - desk.started,
        "model": model,
        "kv_cache": facts["kv_cache"] if facts else None,
        "running": stats.running if stats else 0,
        "waiting": stats.waiting if stats else 0,
        "preemptions": stats.preemptions if stats else 0,
        "steps": stats.steps if stats else 0,
        "prompt_tokens_total": stats.prompt_tokens if stats else 0,
        "generation_tokens_total": stats.generated_tokens if stats else 0,
        "prefix_queries": stats.prefix_queries if stats else 0,
        "prefix_hits": stats.prefix_hits if stats else 0,
        "engine_silent_seconds": round(desk.link.silent_seconds, 3),
        "engine_restarts": desk.link.restarts,
        **desk.metrics.snapshot(),
        **picture_json(await desk.link.look()),
    }


def _model(desk: Desk, name: str) -> dict[str, Any]:
    facts = desk.facts
    return {
        "id": name, "object": "model", "created": desk.created, "owned_by": "octavo", "root": desk.options.model,
        "max_model_len": facts["model"]["max_model_len"], "kv_cache": facts["kv_cache"],
    }  # fmt: skip


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
