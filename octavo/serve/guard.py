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

from octavo.serve.desk import Desk
from octavo.serve.errors import ApiError, api_error_of_bug
from octavo.serve.traces import MODEL_PATHS

__all__ = ["Guard"]

access_log = logging.getLogger("octavo.access")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_OPEN_PATHS = ("/health",)
_LATER = {"Retry-After": "1"}
_SHOWN_PATH = 500
_NAME = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Guard:
    """Requests beyond what may be open are refused as soon as they have come, before any of it is read."""

    def __init__(self, app: Any, desk: Desk):
        self.app, self.desk, self.options = app, desk, desk.options
        self._open: set[object] = set()  # requests to the model that have come whole
        self._keys = [key.encode() for key in desk.options.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        name = given.decode() if _NAME.fullmatch(given) else uuid.uuid4().hex
        number = object()
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
                counted = number if scope["path"] in MODEL_PATHS else None
                # what GET answers, HEAD answers too: the web server leaves the body out
                asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
                await self.app(asked, self._bounded(receive, counted), named_send)
            else:
                await refusal.response()(scope, receive, named_send)
        except Exception:
            bug = api_error_of_bug(f"{scope['method']} {_shown(scope['path'])}")
            if status:
                raise
            await bug.response()(scope, receive, named_send)
        finally:
            self._open.discard(number)
            if status >= 400:
                self.desk.metrics.rejected(status)
            seconds = time.monotonic() - begin
            self._write(scope, name, status, seconds)
            if self.desk.traces is not None and scope["method"] == "POST" and scope["path"] in MODEL_PATHS:
                self.desk.traces.record(scope, status, seconds)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> ApiError | None:
        if self._keys and path not in _OPEN_PATHS and self._key_of(headers.get(b"authorization", b"")) is None:
            return ApiError(401, "a valid API key is needed", "invalid_api_key")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self.options.max_body_bytes:
            return self._too_long()
        encoding = headers.get(b"content-encoding", b"identity")
        if encoding.lower() != b"identity":
            return ApiError(415, f"the body is encoded ({encoding[:40].decode('latin-1')}); send it as it is")
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
                if len(self._open) >= (room := self.desk.room):
                    raise HTTPException(429, f"{room} requests are open and no more may be; try again", _LATER)
                self._open.add(number)
            return message

        return bounded

    def _too_long(self) -> ApiError:
        return ApiError(413, f"the body is longer than {self.options.max_body_bytes} bytes", "body_too_long")

    def _write(self, scope: Scope, name: str, status: int, seconds: float) -> None:
        if scope["path"] in ("/health", "/live", "/metrics"):  # asked for again and again by machines
            return
        exchange = scope["state"].get("exchange")
        path = _shown(scope["path"])
        access_log.info(
            "%s %s %d %.0f ms", scope["method"], path, status, 1e3 * seconds,
            extra={"request_id": name, "method": scope["method"], "path": path, "status": status,
                   "seconds": round(seconds, 4), **(exchange.usage if exchange else {})},
        )  # fmt: skip


def _shown(path: str) -> str:
    """A line break in it must not make a line of the log."""
    return path[:_SHOWN_PATH].encode("unicode_escape").decode()
