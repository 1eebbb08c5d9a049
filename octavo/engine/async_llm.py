"""The async streaming API: the engine runs in its own thread, tokens arrive in the caller's event loop."""

import asyncio
import itertools
import queue
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from octavo.base.errors import OctavoError, RequestError
from octavo.engine.llm import LLM, Prompt
from octavo.engine.request import TokenEvent
from octavo.engine.sampling import SamplingParams

__all__ = ["AsyncLLM"]


class AsyncLLM:
    """`async for event in llm.generate(prompt, params)`. Leaving the loop early aborts the request.

    One thread owns the engine; everything reaches it through a queue of calls, so the engine itself needs no lock.
    """

    def __init__(self, model: str, **options: Any):
        self.llm = LLM(model, **options)
        self._ids = itertools.count()
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._listeners: dict[str, Callable[[TokenEvent | BaseException], None]] = {}
        self._dead: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="octavo-engine", daemon=True)
        self._thread.start()

    async def generate(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> AsyncIterator[TokenEvent]:
        """Events of one request, the last with a finish reason. Raises RequestError for a prompt that cannot be."""
        if self._dead is not None or not self._thread.is_alive():
            raise RequestError("the engine has stopped") from self._dead
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[TokenEvent | BaseException] = asyncio.Queue()
        request_id = f"async-{next(self._ids)}"

        def deliver(event: TokenEvent | BaseException) -> None:
            if not loop.is_closed():  # a caller that is gone needs no answer
                loop.call_soon_threadsafe(events.put_nowait, event)

        self._calls.put(lambda: self._start(request_id, prompt, sampling_params or SamplingParams(), deliver))
        try:
            while True:
                event = await events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            self._calls.put(lambda: self._abort(request_id))

    def close(self) -> None:
        """Abort what is running and end the thread."""
        self._calls.put(None)
        self._thread.join()

    def _start(self, request_id: str, prompt: Prompt, params: SamplingParams,
               deliver: Callable[[TokenEvent | BaseException], None]) -> None:  # fmt: skip
        try:
            ids = self.llm.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            self.llm.engine.add(request_id, ids, params)
            self._listeners[request_id] = deliver
        except OctavoError as error:
            deliver(error)

    def _abort(self, request_id: str) -> None:
        self._listeners.pop(request_id, None)
        self.llm.engine.abort(request_id)

    def _run(self) -> None:
        try:
            while self._handle_calls():
                for event in self.llm.engine.step():
                    listener = self._listeners.get(event.request_id)
                    if listener is not None:
                        listener(event)
                    if event.finish_reason is not None:
                        self._listeners.pop(event.request_id, None)
        except BaseException as error:  # whatever it is, nobody must wait for ever
            self._dead = error
        finally:
            failure = RequestError("the engine has stopped")
            failure.__cause__ = self._dead
            for listener in self._listeners.values():
                listener(failure)
            self._listeners.clear()
            if self._dead is None:
                self.llm.engine.drain()

    def _handle_calls(self) -> bool:
        """Run every queued call; wait for one when there is nothing to step. False: it is time to end."""
        while True:
            try:
                call = self._calls.get(block=not self.llm.engine.busy)
            except queue.Empty:
                return True
            if call is None:
                return False
            call()
