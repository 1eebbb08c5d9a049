"""What stands before every route: keys, the size of bodies, a name for each request, a line in the log.

Plain ASGI, so that nothing is buffered and a streamed answer passes untouched.
"""

import base64
import binascii
import hmac
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

from octavo.serve.errors import ApiError
from octavo.serve.options import ServeOptions
from octavo.serve.traces import TRACED, Traces

__all__ = ["Guard"]

access_log = logging.getLogger("octavo.access")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_OPEN_PATHS = ("/health",)
_SHOWN_PATH = 500
_NAME = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Guard:
    """`rejected`: told the status of every answer from 400 on. `traces`: told of every request for an answer."""

    def __init__(
        self, app: Any, options: ServeOptions, rejected: Callable[[int], None] = lambda status: None,
        traces: Traces | None = None,
    ):  # fmt: skip
        self.app, self.options, self.rejected, self.traces = app, options, rejected, traces
        self._keys = [key.encode() for key in options.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        name = given.decode() if _NAME.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = name
        scope["state"]["tenant"] = self._tenant(headers)
        begin, status = time.monotonic(), 0

        async def named_send(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name.encode())]
            await send(message)

        try:
            refusal = self._refusal(scope["path"], headers)
            if refusal is None:
                await self.app(scope, self._bounded(receive), named_send)
            else:
                await refusal.response()(scope, receive, named_send)
        finally:
            if status >= 400:
                self.rejected(status)
            seconds = time.monotonic() - begin
            self._write(scope, name, status, seconds)
            if self.traces is not None and scope["path"] in TRACED:
                self.traces.record(scope, status, seconds)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> ApiError | None:
        if self._keys and path not in _OPEN_PATHS and self._key_of(headers.get(b"authorization", b"")) is None:
            return ApiError(401, "a valid API key is needed", "invalid_api_key")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self.options.max_body_bytes:
            return self._too_long()
        return None

    def _tenant(self, headers: dict[bytes, bytes]) -> str:
        """Whose prefixes a request may find: those of its key, if keys are kept apart."""
        if not self.options.prefix_cache_per_key:
            return ""
        return f"key {self._key_of(headers.get(b'authorization', b''))}\n"

    def _key_of(self, authorization: bytes) -> int | None:
        """Bearer with a key, or Basic with the key as its password: which one. All are compared, in constant time."""
        kind, _, rest = authorization.partition(b" ")
        key = rest.strip()
        if kind.lower() == b"basic":
            try:
                key = base64.b64decode(key, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                key = b""
        elif kind.lower() != b"bearer":
            key = b""
        same = [hmac.compare_digest(key, known) for known in self._keys]
        return same.index(True) if any(same) else None

    def _bounded(self, receive: Receive) -> Receive:
        """For bodies that do not say their length."""
        seen = 0

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.options.max_body_bytes:
                raise HTTPException(413, self._too_long().message)
            return message

        return bounded

    def _too_long(self) -> ApiError:
        return ApiError(413, f"the body is longer than {self.options.max_body_bytes} bytes", "body_too_long")

    def _write(self, scope: Scope, name: str, status: int, seconds: float) -> None:
        if scope["path"] in ("/health", "/live", "/metrics"):  # asked for again and again by machines
            return
        exchange = scope["state"].get("exchange")
        path = scope["path"][:_SHOWN_PATH].encode("unicode_escape").decode()  # a line break in it must not make a line
        access_log.info(
            "%s %s %d %.0f ms", scope["method"], path, status, 1e3 * seconds,
            extra={"request_id": name, "method": scope["method"], "path": path, "status": status,
                   "seconds": round(seconds, 4), **(exchange.usage if exchange else {})},
        )  # fmt: skip
