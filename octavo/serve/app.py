"""The front process's application: routes around one desk. The engine starts and ends with it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from octavo.serve import chat_routes, completion_routes, errors, info_routes, web_routes
from octavo.serve.desk import Desk
from octavo.serve.engine_link import EngineLink
from octavo.serve.guard import Guard
from octavo.serve.metrics import Metrics
from octavo.serve.options import ServeOptions
from octavo.serve.traces import open_traces
from octavo.serve.words import open_words

__all__ = ["make_app", "make_desk"]

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "param"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": ["string", "null"]},
                "param": {"type": ["string", "null"]},
            },
        }
    },
}
_STATUSES = {400: "Wrong input", 401: "No valid key", 404: "No such model", 413: "Too long", 415: "Not JSON",
             429: "Queue full", 503: "Not ready"}  # fmt: skip


def make_desk(options: ServeOptions) -> Desk:
    """Reads the tokenizer; raises OctavoError for a checkpoint that cannot be opened. The engine is not started."""
    engine = options.engine
    words = open_words(options.model, engine.get("tokenizer"), options.chat_template)
    link = EngineLink(engine, options.engine_timeout)
    metrics = Metrics(options.names[0])
    link.on_stats, link.on_ready, link.on_death = metrics.stats, metrics.ready, metrics.engine_restarted
    traces = None
    if options.otlp_traces_endpoint is not None:
        traces = open_traces(options.otlp_traces_endpoint, options.names[0], lambda: link.kv_cache_dtype)
    return Desk(options, link, words, metrics, traces)


def make_app(desk: Desk) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        desk.link.start()
        yield
        await desk.link.close()
        await desk.words.close()
        if desk.traces is not None:
            await asyncio.to_thread(desk.traces.close)

    answers: dict[int | str, dict[str, Any]] = {
        status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
        for status, text in _STATUSES.items()
    }
    app = FastAPI(
        title="Octavo", version=metadata.version("octavo"), lifespan=lifespan, responses=answers, docs_url=None,
        redoc_url=None, openapi_url="/openapi.json",
    )  # fmt: skip
    errors.install(app)
    for routes in (chat_routes, completion_routes, info_routes):
        app.include_router(routes.router(desk))
    app.include_router(web_routes.router())
    app.add_middleware(Guard, desk=desk)
    if desk.options.allowed_origins:  # before the guard: what a browser asks first has no key
        app.add_middleware(
            CORSMiddleware, allow_origins=desk.options.allowed_origins, allow_methods=["GET", "POST"],
            allow_headers=["*"], expose_headers=["X-Request-Id", "X-Octavo-Ignored", "Retry-After"],
        )  # fmt: skip
    return app
