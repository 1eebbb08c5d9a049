"""One TCP connection: uvicorn's protocol, with bounds on what a client may hold without asking anything.

A request must have come whole in `receive_timeout` seconds, plus one for each 1000 bytes; its head is small; what is
written for a client must move every `client_timeout` seconds. An answer under way is never cut by the first of these.
"""

import asyncio
import contextlib
import logging
import resource
import socket
import time
from collections.abc import Callable, Collection
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from octavo.serve.errors import ApiError
from octavo.serve.options import ServeOptions

__all__ = ["Connection", "quiet_accept", "raise_file_limit", "watch"]

log = logging.getLogger("octavo")

_HEAD_BYTES, _HEADERS = 64 << 10, 256
_BYTES_A_SECOND = 1000
_OWN_FILES = 48
_KEPT_BYTES, _RESUME_BYTES, _UNSENT_BYTES = 32 << 10, 24 << 10, 32 << 10
_VERSIONS = ("1.0", "1.1")
_OFFERS = (b"upgrade", b"connection", b"http2-settings")


class Connection(HttpToolsProtocol):
    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self._since: float | None = None  # a request is awaited or being received since then
        self._received = 0
        self._in_head = self._offered = False
        self._refusal = ApiError(400, "this is no HTTP request")
        self._cycles: list[RequestResponseCycle] = []
        self._unread = (0, 0.0)  # bytes that wait to be sent, and since when so many

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = time.monotonic()
        transport.set_write_buffer_limits(_KEPT_BYTES, _RESUME_BYTES)
        with contextlib.suppress(OSError, AttributeError):  # a reader that is slow is seen to move in small steps
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        most = most_connections()
        if len(self.connections) > most:
            self._refuse(ApiError(503, f"{most} connections are open and no more can be", "too_many_connections"))

    def data_received(self, data: bytes) -> None:
        if self._since is None:
            self._since, self._received = time.monotonic(), 0
        self._received += len(data)
        self._unset_keepalive_if_required()
        self._feed(data)
        if self._in_head and self._received > _HEAD_BYTES and not self.transport.is_closing():
            self._refuse(_long_head())

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._offered, rest = False, data[offer.args[0] :]
            kept = [pair for pair in self.headers if pair[0] not in _OFFERS]
            head = b"%s %s HTTP/1.1\r\n" % (self.parser.get_method(), self.url)
            self.parser = httptools.HttpRequestParser(self)
            self._feed(head + b"".join(b"%s: %s\r\n" % pair for pair in kept) + b"\r\n" + rest)
        except httptools.HttpParserError:
            self._refuse(self._refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        for cycle in self._cycles:  # uvicorn tells the newest of pipelined requests only
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        if self._since is None:
            self._since, self._received = time.monotonic(), 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        fault = self._fault()
        if fault is not None:
            self._refusal = fault
            raise ValueError(fault.message)  # the parser stops here
        self._offered = self.parser.should_upgrade()
        if self._offered:  # taken for the end of HTTP by the parser; here the offer is dropped, the request is not
            return
        super().on_headers_complete()
        self._cycles = [one for one in self._cycles if not one.response_complete] + [self.cycle]

    def on_message_complete(self) -> None:
        if self._offered:
            return
        self._since = None
        super().on_message_complete()

    def _fault(self) -> ApiError | None:
        """What is wrong with a head that could be parsed."""
        if len(self.headers) > _HEADERS or sum(len(name) + len(value) for name, value in self.headers) > _HEAD_BYTES:
            return _long_head()
        if self.parser.get_method() == b"CONNECT":
            return ApiError(405, "this is no proxy")
        version = self.parser.get_http_version()
        if version not in _VERSIONS:
            return ApiError(400, f"HTTP/{version} is not spoken here")
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (version == "1.1" and not hosts):  # RFC 9112, section 3.2
            return ApiError(400, f"the request has {hosts} Host headers; it must have one")
        return None

    def _refuse(self, error: ApiError) -> None:
        """Say it, unless an answer is under way, and close."""
        if not any(one.response_started and not one.response_complete for one in self._cycles):
            body = error.response().body
            head = f"HTTP/1.1 {error.status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + bytes(body))
        self.transport.close()

    def check(self, now: float, options: ServeOptions) -> bool:
        """Close what has been idle for too long; whether this one was."""
        waiting = self.transport.get_write_buffer_size()
        if not waiting or waiting != self._unread[0]:
            self._unread = (waiting, now)
        if now - self._unread[1] > options.client_timeout:
            self.transport.abort()
            return True
        if self._since is None or self.transport.is_closing():
            return False
        if any(not one.more_body and not one.response_complete for one in self._cycles):
            self._since = now  # it waits for us: a request behind one that is being answered
            return False
        if now - self._since <= options.receive_timeout + self._received / _BYTES_A_SECOND:
            return False
        self._refuse(ApiError(408, f"no whole request has come in {options.receive_timeout:g} s", "request_timeout"))
        return True


def _long_head() -> ApiError:
    return ApiError(431, f"the head of a request may have {_HEAD_BYTES} bytes and {_HEADERS} headers")


def most_connections() -> int:
    """As many as the process may open files, less what it needs for itself."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(files - _OWN_FILES, files // 4)


def raise_file_limit() -> None:
    """Each connection is an open file; systems allow 1024 unless asked for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def quiet_accept(seconds: float = 10.0) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """A handler for the event loop's errors: that no connection can be accepted is said once in a while."""
    told = -seconds

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal told
        if "accept" not in str(context.get("message")):
            loop.default_exception_handler(context)
        elif time.monotonic() - told > seconds:
            told = time.monotonic()
            log.error("a connection cannot be accepted: %s; raise the limit of open files", context.get("exception"))

    return handle


async def watch(connections: Collection[Any], options: ServeOptions) -> None:
    """Until cancelled: close the connections whose time is up."""
    while True:
        await asyncio.sleep(min(1.0, options.receive_timeout / 4, options.client_timeout / 4))
        now = time.monotonic()
        closed = sum(one.check(now, options) for one in list(connections))
        if closed:
            log.info("closed %d connections whose clients neither sent nor read", closed)
