"""Server-sent events: an answer that is sent while it is made, and given up when nobody reads it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any

import msgspec
from starlette.responses import Response

from octavo.base.errors import OctavoError
from octavo.serve.errors import ApiError, api_error_of, api_error_of_bug

__all__ = ["DONE", "EventStream", "data", "until_disconnect"]

log = logging.getLogger("octavo")

DONE = b"data: [DONE]\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_encode = msgspec.json.Encoder().encode

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def data(value: Any) -> bytes:
    """One event."""
    return b"data: " + _encode(value) + b"\n\n"


async def until_disconnect(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """`chunks`: the bytes of events. Closed in every case: the client left, does not read for `stall_seconds`, or an
    error came, which then is the last event, and stands in the request's state as `failure`."""

    def __init__(self, chunks: AsyncGenerator[bytes, None], stall_seconds: float, headers: dict[str, str]):
        super().__init__(None, 200, {**_HEADERS, **headers}, "text/event-stream")
        del self.headers["content-length"]
        self.chunks, self.stall_seconds = chunks, stall_seconds
        self.failure: ApiError | None = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        pump = asyncio.create_task(self._pump(send))
        gone = asyncio.create_task(until_disconnect(receive))
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (pump, gone):
                task.cancel()
            results = await asyncio.gather(pump, gone, return_exceptions=True)
            await self.chunks.aclose()
            scope["state"]["failure"] = self.failure
        if isinstance(results[0], TimeoutError):
            log.info("a client has read nothing for %.0f s; its answer is given up", self.stall_seconds)

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for chunk in self.chunks:
                async with asyncio.timeout(self.stall_seconds):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except (TimeoutError, asyncio.CancelledError):
            raise
        except Exception as error:
            self.failure = _api_error(error)
            await send({"type": "http.response.body", "body": data(self.failure.body()), "more_body": True})
        with contextlib.suppress(OSError):
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _api_error(error: Exception) -> ApiError:
    if isinstance(error, OctavoError):
        return api_error_of(error)
    return error if isinstance(error, ApiError) else api_error_of_bug("a stream")
