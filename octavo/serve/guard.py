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

__all__ = ["Guard"]

access_log = logging.getLogger("octavo.access")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_OPEN_PATHS = ("/health",)
_MODEL_PATHS = ("/v1/chat/completions", "/v1/completions")
_LATER = {"Retry-After": "1"}
_SHOWN_PATH = 500
_NAME = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Guard:
    """`rejected`: told the status of every answer from 400 on. `room`: how many requests may be open; those beyond are
    refused as soon as they have come, before any of it is read."""

    def __init__(self, app: Any, options: ServeOptions, rejected: Callable[[int], None] = lambda status: None,
                 room: Callable[[], int] = lambda: 1 << 30):  # fmt: skip
        self.app, self.options, self.rejected, self.room = app, options, rejected, room
        self._open: set[object] = set()  # requests to the model that have come whole
        self._keys = [key.encode() for key in options.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        name = given.decode() if _NAME.fullmatch(given) else uuid.uuid4().hex
        number = object()
        scope.setdefault("state", {})["request_id"] = name
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
                await self.app(
                    scope, self._bounded(receive, number if scope["path"] in _MODEL_PATHS else None), named_send
                )
            else:
                await refusal.response()(scope, receive, named_send)
        finally:
            self._open.discard(number)
            if status >= 400:
                self.rejected(status)
            self._write(scope, name, status, time.monotonic() - begin)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> ApiError | None:
        if self._keys and path not in _OPEN_PATHS and not self._knows(headers.get(b"authorization", b"")):
            return ApiError(401, "a valid API key is needed", "invalid_api_key")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self.options.max_body_bytes:
            return self._too_long()
        return None

    def _knows(self, authorization: bytes) -> bool:
        """Bearer with a key, or Basic with the key as its password. Every key is compared, in constant time."""
        kind, _, rest = authorization.partition(b" ")
        key = rest.strip()
        if kind.lower() == b"basic":
            try:
                key = base64.b64decode(key, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                key = b""
        elif kind.lower() != b"bearer":
            key = b""
        return sum(hmac.compare_digest(key, known) for known in self._keys) > 0

    def _bounded(self, receive: Receive, number: object | None) -> Receive:
        """For bodies that do not say their length, and for requests to the model (`number`) beyond what may be open."""
        seen = 0

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.options.max_body_bytes:
                raise HTTPException(413, self._too_long().message)
            whole = message["type"] == "http.request" and not message.get("more_body")
            if whole and number is not None and number not in self._open:
                if len(self._open) >= (room := self.room()):
                    raise HTTPException(429, f"{room} requests are open and no more may be; try again", _LATER)
                self._open.add(number)
            return message

        return bounded

    def _too_long(self) -> ApiError:
        return ApiError(413, f"the body is longer than {self.options.max_body_bytes} bytes", "body_too_long")

    def _write(self, scope: Scope, name: str, status: int, seconds: float) -> None:
        if scope["path"] in ("/health", "/live", "/metrics"):  # asked for again and again by machines
            return
        path = scope["path"][:_SHOWN_PATH].encode("unicode_escape").decode()  # a line break in it must not make a line
        access_log.info(
            "%s %s %d %.0f ms", scope["method"], path, status, 1e3 * seconds,
            extra={"request_id": name, "method": scope["method"], "path": path, "status": status,
                   "seconds": round(seconds, 4), **scope["state"].get("usage", {})},
        )  # fmt: skip
