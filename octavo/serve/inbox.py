"""Where the events of one HTTP request wait until its handler takes them."""

import asyncio
from collections import deque

from octavo.base.errors import OctavoError
from octavo.serve.wire import Event

__all__ = ["EngineGone", "Inbox", "Refusal"]


class EngineGone(OctavoError):
    """The engine died, or the server is being shut down: the answer will not be finished."""


class Refusal(OctavoError):
    """The engine did not take the request."""


class Inbox:
    """Single reader. `put` and `fail` are called by the link, `take` by the handler, all in one event loop."""

    def __init__(self) -> None:
        self._items: deque[tuple[int, Event]] = deque()
        self._failure: OctavoError | None = None
        self._wake: asyncio.Future[None] | None = None

    def put(self, choice: int, event: Event) -> None:
        self._items.append((choice, event))
        self._ring()

    def fail(self, failure: OctavoError) -> None:
        """What came before it is still taken first."""
        self._failure = self._failure or failure
        self._ring()

    async def take(self) -> list[tuple[int, Event]]:
        """All that is there, at least one event: `(choice, event)` in the order they came. Raises EngineGone or
        Refusal once nothing is left."""
        while not self._items:
            if self._failure is not None:
                raise self._failure
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        items = list(self._items)
        self._items.clear()
        return items

    def _ring(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
        self._wake = None
