"""A server with OpenAI's API and no model: it sends what a script says, when it says, and notes what it was asked."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Fake:
    """`pause`: seconds before each token. `refuse`: body -> (status, message) or None. `pieces`: the tokens' texts."""

    model: str = "toy"
    kv_cache: dict[str, Any] | None = None
    pause: float = 0.0
    usage: bool = True
    framing: str = "chunked"
    """or `close`: the answer has no length, and ends with the connection"""
    refuse: Callable[[dict[str, Any]], tuple[int, str] | None] = lambda body: None
    pieces: Callable[[int], str] = lambda number: f" w{number}"
    cut_after: int | None = None
    live: dict[str, Any] | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    connections: int = 0
    most_at_once: int = 0
    left: threading.Event = field(default_factory=threading.Event)
    """a client went away in the middle of an answer"""
    at_once: int = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while (asked := await _request(reader)) is not None:
                self.headers.append(asked.headers)
                if not await self.answer(asked, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        except asyncio.CancelledError:  # the test is over
            pass
        finally:
            writer.close()

    async def answer(self, asked: "Asked", writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays."""
        if asked.path == "/v1/models":
            entry = {"id": self.model, "object": "model", **({"kv_cache": self.kv_cache} if self.kv_cache else {})}
            return await _json(writer, 200, {"object": "list", "data": [entry]})
        if asked.path == "/live" and self.live is not None:
            return await _json(writer, 200, self.live)
        if asked.path not in ("/v1/completions", "/v1/chat/completions"):
            return await _json(writer, 404, {"detail": "Not Found"})
        self.bodies.append(asked.body)
        if (no := self.refuse(asked.body)) is not None:
            return await _json(writer, no[0], {"error": {"message": no[1]}})
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._stream(asked, writer)
        finally:
            self.at_once -= 1

    async def _stream(self, asked: "Asked", writer: asyncio.StreamWriter) -> bool:
        chunked = self.framing == "chunked"
        head = "Transfer-Encoding: chunked\r\n" if chunked else "Connection: close\r\n"
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n{head}\r\n".encode())
        number = 0
        async for event in self._events(asked):
            if number == self.cut_after:
                return False
            number += 1
            data = b"data: " + event + b"\n\n"
            writer.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)
            if writer.transport.is_closing():
                raise ConnectionError
            await writer.drain()
        writer.write(b"0\r\n\r\n" if chunked else b"")
        await writer.drain()
        return chunked

    async def _events(self, asked: "Asked") -> AsyncIterator[bytes]:
        chat, count = "chat" in asked.path, asked.body["max_tokens"]
        if chat:
            yield _chunk({"delta": {"role": "assistant", "content": ""}})
        for number in range(count):
            if self.pause:
                await asyncio.sleep(self.pause)
            text = self.pieces(number)
            yield _chunk({"delta": {"content": text}} if chat else {"text": text})
        yield _chunk({"delta": {}, "finish_reason": "length"} if chat else {"text": "", "finish_reason": "length"})
        if self.usage and asked.body.get("stream_options", {}).get("include_usage"):
            prompt = asked.body.get("prompt") or asked.body["messages"]
            usage = {
                "prompt_tokens": len(prompt), "completion_tokens": count,
                "prompt_tokens_details": {"cached_tokens": 3},
            }  # fmt: skip
            yield json.dumps({"choices": [], "usage": usage}).encode()
        yield b"[DONE]"


@dataclass
class Asked:
    path: str
    headers: dict[str, str]
    body: Any


def _chunk(choice: dict[str, Any]) -> bytes:
    return json.dumps({"id": "x", "choices": [{"index": 0, "finish_reason": None, **choice}]}).encode()


async def _request(reader: asyncio.StreamReader) -> Asked | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(first.split()[1], headers, json.loads(body) if body else None)


async def _json(writer: asyncio.StreamWriter, status: int, body: Any) -> bool:
    data = json.dumps(body).encode()
    writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    await writer.drain()
    return True


@contextmanager
def serving(fake: Fake, port: int = 0):
    """The URL of a fake server on a thread of its own."""
    started, found = threading.Event(), {}

    async def main() -> None:
        found["loop"], found["stop"] = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(fake.connected, "127.0.0.1", port)
        found["port"] = server.sockets[0].getsockname()[1]
        started.set()
        await found["stop"].wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert started.wait(10)
    try:
        yield f"http://127.0.0.1:{found['port']}"
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join(10)
