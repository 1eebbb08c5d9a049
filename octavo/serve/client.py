"""A small HTTP client for servers with OpenAI's API: asyncio, one POST or GET at a time on each connection, server-sent
events handed over as they arrive.

It shares its cores with the server that it measures, so it wakes no task for a token: what a socket gives is parsed
where it arrives (httptools for HTTP), and each event goes to a plain function with the time of its arrival.
"""

import asyncio
import json
import ssl
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httptools

__all__ = ["Client", "Reply", "Unreachable", "error_text", "no_event"]

OnEvent = Callable[[bytes, float], None]
"""is given the `data` of a server-sent event, and when it arrived (seconds of `time.perf_counter`)"""

_SHOWN = 300


class Unreachable(Exception):
    """No answer, or half of one: the connection was refused, lost or silent for too long."""


@dataclass
class Reply:
    """`body` is empty where the server answered with events."""

    status: int
    body: bytes
    ended: float
    """when the last byte arrived, seconds of `time.perf_counter`"""

    def json(self) -> Any:
        """The body, or None where it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


def no_event(_data: bytes, _at: float) -> None:
    pass


def error_text(reply: Reply) -> str:
    """`HTTP 404: what the server said`, from `error.message` (OpenAI), `message`, `detail` (FastAPI) or the body."""
    said = reply.json()
    said = said.get("error", said) if isinstance(said, dict) else reply.body.decode("utf-8", "replace")
    if isinstance(said, dict):
        said = said.get("message") or said.get("detail") or said
    text = " ".join((said if isinstance(said, str) else json.dumps(said)).split())
    text = text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."
    return f"HTTP {reply.status}{': ' if text else ''}{text}"


class _Connection(asyncio.Protocol):
    """One connection; between `start` and the end of `done` it belongs to one request."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.done: asyncio.Future[Reply] | None = None
        self.on_event: OnEvent = no_event
        self.heard = 0.0
        """when the last bytes of this request's answer arrived; 0: none did"""
        self.reusable, self.lost = True, False

    def start(self, head_and_body: bytes, on_event: OnEvent) -> "asyncio.Future[Reply]":
        self.parser = httptools.HttpResponseParser(self)
        self.body, self.rest = bytearray(), b""
        self.events, self.sized, self.in_body = False, False, False
        self.on_event = on_event
        self.heard = 0.0
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(head_and_body)
        return self.done

    # what asyncio calls

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard = time.perf_counter()
        if self.done is None or self.done.done():
            self.transport.close()  # nobody asked, or nobody listens any more
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            cause = error.__context__ or error
            self._fail(cause if not isinstance(cause, httptools.HttpParserError) else Unreachable(f"no HTTP: {cause}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable, self.lost = False, True
        if exc is None and self.done is not None and not self.done.done() and self.in_body and not self.sized:
            self.on_message_complete()  # an answer of unknown length ends with its connection
        self._fail(Unreachable(f"the connection was lost{f': {exc}' if exc else ''}"))

    def _fail(self, error: BaseException) -> None:
        self.reusable = False
        if self.done is not None and not self.done.done():
            self.done.set_exception(error)
        if self.transport is not None:
            self.transport.close()

    # what httptools calls

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self.events = value.lower().startswith(b"text/event-stream")
        self.sized = self.sized or name in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self.in_body = True

    def on_body(self, data: bytes) -> None:
        if not self.events:
            self.body += data
            return
        *whole, self.rest = (self.rest + data).split(b"\n")
        for line in whole:
            if line.startswith(b"data:"):
                self.on_event(line[5:].strip(), self.heard)

    def on_message_complete(self) -> None:
        self.reusable = self.reusable and self.parser.should_keep_alive()
        if self.done is not None and not self.done.done():
            self.done.set_result(Reply(self.parser.get_status_code(), bytes(self.body), self.heard))


@dataclass
class Client:
    """Connections to one server, used again while it leaves them open. `url`: without /v1."""

    url: str
    api_key: str | None = field(default=None, repr=False)
    timeout_seconds: float = 600.0
    """without a byte"""
    _idle: list[_Connection] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._address = parts.hostname or "", parts.port or (443 if self._tls else 80)
        self._path = parts.path.rstrip("/")
        key = f"Authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
        self._head = f"Host: {parts.netloc}\r\nUser-Agent: octavo\r\nAccept: */*\r\n{key}"

    async def get(self, path: str) -> Reply:
        return await self._ask(f"GET {self._path}{path} HTTP/1.1\r\n{self._head}\r\n".encode(), no_event)

    async def post(self, path: str, body: bytes, on_event: OnEvent = no_event) -> Reply:
        """Send JSON; events go to `on_event`. Raises Unreachable, or what `on_event` raises. A task that is cancelled
        here closes the connection, by which the server knows that nobody reads any more."""
        head = (
            f"POST {self._path}{path} HTTP/1.1\r\n{self._head}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return await self._ask(head.encode() + body, on_event)

    async def close(self) -> None:
        for connection in self._idle:
            connection.transport.abort()
        self._idle.clear()
        await asyncio.sleep(0)  # the loop closes the sockets

    async def _ask(self, message: bytes, on_event: OnEvent) -> Reply:
        while (connection := self._take()) is not None:
            try:
                return await self._once(connection, message, on_event)
            except Unreachable:
                if connection.heard or not connection.lost:  # else it was closed while it was idle
                    raise
        return await self._once(await self._connect(), message, on_event)

    def _take(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.timeout_seconds):
                _, connection = await loop.create_connection(_Connection, *self._address, ssl=self._tls)
        except (OSError, TimeoutError) as error:
            raise Unreachable(f"no connection to {self.url}: {error or 'it takes too long'}") from error
        return connection

    async def _once(self, connection: _Connection, message: bytes, on_event: OnEvent) -> Reply:
        done = connection.start(message, on_event)
        try:
            while not done.done():
                await asyncio.wait((done,), timeout=self.timeout_seconds)
                silent = time.perf_counter() - connection.heard if connection.heard else self.timeout_seconds
                if not done.done() and silent >= self.timeout_seconds:
                    raise Unreachable(f"no byte in {self.timeout_seconds:g} s")
            return done.result()
        except BaseException:
            connection.reusable = False
            raise
        finally:
            if connection.reusable:
                self._idle.append(connection)
            else:
                connection.transport.abort()
                if not done.cancel() and not done.cancelled():
                    done.exception()  # it was looked at: asyncio says nothing more about it
