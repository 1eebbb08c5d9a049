"""`octavo chat URL`: the same conversation with a server. To stop an answer is to close its connection."""

import asyncio
import json
import os
import sys
from dataclasses import asdict, dataclass, fields
from typing import Any

from octavo.base.errors import BadValue, RequestError, UsageError
from octavo.cli.engine_flags import EngineFlags, SamplingFlags
from octavo.evals.server import urls_of
from octavo.serve.client import Client, Unreachable, error_text
from octavo.serve.served import served_model

__all__ = ["ServerChat"]

_ALWAYS = ("max_tokens", "temperature", "top_p")
"""other settings are sent only when they are not at their defaults: not every server knows them"""


@dataclass(frozen=True)
class ServerChat:
    url: str
    api_key: str | None
    entry: dict[str, Any]
    """what /v1/models says of the model"""
    settings: dict[str, Any]

    @classmethod
    def open(cls, engine: EngineFlags, sampling: SamplingFlags, name: str | None, key: str | None) -> "ServerChat":
        """Asks the server for its model. Raises UsageError for flags of an engine, BadValue for a wrong URL."""
        given = [
            "--" + one.name.replace("_", "-") for one in fields(engine)
            if one.name != "model" and getattr(engine, one.name) != one.default
        ]  # fmt: skip
        if given:
            are = "is a flag" if len(given) == 1 else "are flags"
            raise UsageError(
                f"{', '.join(given)} {are} of an engine, and {engine.model} is a server", hint="give such to the server"
            )
        urls = urls_of(engine.model)
        if len(urls) > 1:
            raise BadValue(f"one server to talk to, not {len(urls)}: {engine.model}")
        key = key or os.environ.get("OPENAI_API_KEY") or None
        plain, wanted = asdict(SamplingFlags()), asdict(sampling)
        settings = {name: value for name, value in wanted.items() if name in _ALWAYS or value != plain[name]}
        return cls(urls[0], key, asyncio.run(_entry(urls[0], key, name)), settings)

    @property
    def facts(self) -> dict[str, Any]:
        return {"server": {"url": self.url, "model": self.entry["id"]}, "kv_cache": self.entry.get("kv_cache")}

    def turn(self, messages: list[dict[str, str]]) -> tuple[str, dict[str, Any]]:
        """One answer, shown as it comes. An interrupted answer is kept as far as it came; its counts are not known.
        Raises UsageError where the server does not answer, RequestError where it refuses."""
        body = {
            "model": self.entry["id"], "messages": messages, "stream": True,
            "stream_options": {"include_usage": True}, **self.settings,
        }  # fmt: skip
        shown = _Shown()
        try:
            asyncio.run(self._ask(json.dumps(body).encode(), shown))
        except KeyboardInterrupt:
            sys.stdout.write(" [stopped]\n")
        else:
            sys.stdout.write("\n")
        return shown.text, shown.turn()

    async def _ask(self, body: bytes, shown: "_Shown") -> None:
        client = Client(self.url, self.api_key)
        try:
            reply = await client.post("/v1/chat/completions", body, shown)
        except Unreachable as error:
            raise UsageError(f"{self.url}: {error}") from error
        finally:
            await client.close()
        if reply.status != 200:
            raise RequestError(f"{self.url} refused: {error_text(reply)}")


class _Shown:
    """Called with each event of the stream. What a model thinks is shown but is no part of its answer."""

    def __init__(self) -> None:
        self.text = ""
        self.usage: dict[str, Any] = {}

    def __call__(self, data: bytes, _at: float) -> None:
        if data == b"[DONE]":
            return
        try:
            chunk = json.loads(data)
            delta = chunk["choices"][0].get("delta") or {} if chunk.get("choices") else {}
        except (ValueError, TypeError, KeyError, AttributeError, LookupError) as error:
            raise RequestError(f"an event that is no chunk of an answer: {data[:200]!r}") from error
        if chunk.get("error"):
            raise RequestError(f"the server stopped: {chunk['error']}")
        self.usage = chunk.get("usage") or self.usage
        answer = delta.get("content") or ""
        self.text += answer
        sys.stdout.write((delta.get("reasoning_content") or delta.get("reasoning") or "") + answer)
        sys.stdout.flush()

    def turn(self) -> dict[str, Any]:
        details = self.usage.get("prompt_tokens_details") or {}
        return {
            "prompt_tokens": self.usage.get("prompt_tokens"), "cached_tokens": details.get("cached_tokens"),
            "completion_tokens": self.usage.get("completion_tokens"),
        }  # fmt: skip


async def _entry(url: str, key: str | None, name: str | None) -> dict[str, Any]:
    client = Client(url, key, timeout_seconds=30.0)
    try:
        return await served_model(client, name)
    finally:
        await client.close()
