"""The front's end of the engine: starts the process, speaks with it, notices its death and starts it again.

loading --Ready--> ready --connection lost--> restarting --Ready--> ready
   \\--Failed or death--> failed                    \\--again and again, with pauses of up to 30 s
any --close()--> stopping
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from octavo.base.errors import OctavoError, UsageError
from octavo.serve.engine_child import EngineChild
from octavo.serve.inbox import EngineGone, Inbox, Refusal
from octavo.serve.wire import (
    Abort,
    Add,
    Failed,
    FromEngine,
    Log,
    Look,
    Picture,
    Ready,
    Refused,
    Start,
    Stats,
    Step,
    decoder_of,
    frame,
    frame_length,
)

__all__ = ["EngineLink", "Share"]

log = logging.getLogger("octavo")

_LONGEST_PAUSE_SECONDS = 30.0
_LOOK_SECONDS = 2.0


class Share(NamedTuple):
    """What one client's request may have with the engine at once: answers, and tokens of prompts yet to be read."""

    answers: int
    prompt_tokens: int


class EngineLink:
    """`options`: what EngineOptions takes. `on_stats`: called with the counters of every step."""

    def __init__(self, options: dict[str, Any], timeout_seconds: float = 300.0):
        self.options, self.timeout_seconds = options, timeout_seconds
        self.state = "loading"
        self.facts: dict[str, Any] | None = None
        self.last_stats: Stats | None = None
        self.failure: OctavoError | None = None
        self.restarts = 0
        self.kept_back = 0
        """answers that wait in the front; whoever keeps them there counts them"""
        self.on_stats: Callable[[Stats], None] = lambda stats: None
        self.on_ready: Callable[[dict[str, Any]], None] = lambda facts: None
        self.on_death: Callable[[], None] = lambda: None
        self._homes: dict[int, tuple[Inbox, int]] = {}
        self._next_id = 0
        self._writer: asyncio.StreamWriter | None = None
        self._child = EngineChild()
        self._owed: float | None = None  # since then the engine owes a word
        self._looks: list[asyncio.Future[Picture | None]] = []
        self._supervisor: asyncio.Task[None] | None = None
        self._watchdog: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()

    @property
    def open_requests(self) -> int:
        return len(self._homes) + self.kept_back

    @property
    def share(self) -> "Share":
        """An eighth of the engine's places is left to others, and two steps are enough to keep it busy."""
        if self.facts is None:
            return Share(1, 1)
        limits = self.facts["limits"]
        places = limits["max_num_seqs"]
        return Share(max(1, places - max(1, places // 8)), 2 * limits["max_num_batched_tokens"])

    @property
    def silent_seconds(self) -> float:
        """How long the engine has left something unanswered; 0: it has nothing to answer. A step that takes long
        counts, so much of it is an alarm, and only `timeout_seconds` the end."""
        return 0.0 if self._owed is None else time.monotonic() - self._owed

    @property
    def pid(self) -> int | None:
        return self._child.pid

    @property
    def kv_cache_dtype(self) -> str | None:
        """What the engine chose; None before it was ready."""
        return self.facts["kv_cache"]["dtype"] if self.facts else None

    def start(self) -> None:
        """Start the engine process; returns at once."""
        self._supervisor = asyncio.create_task(self._supervise())
        self._watchdog = asyncio.create_task(self._watch())

    async def settled(self) -> None:
        """Returns when the first start ended, well or badly. Raises what stood in its way."""
        await self._settled.wait()
        if self.failure is not None:
            raise self.failure

    def submit(self, inbox: Inbox, choice: int, tokens: list[int], params: dict[str, Any], salt: str) -> int:
        """Send a request; its events come into `inbox` as `choice`. Raises EngineGone while there is no engine."""
        if self.state != "ready" or self._writer is None:
            raise EngineGone(f"the engine is {self.state}", hint="try again soon")
        message = frame(Add(self._next_id + 1, tokens, params, salt))
        self._owed = self._owed or time.monotonic()
        self._next_id += 1
        self._homes[self._next_id] = (inbox, choice)
        self._writer.write(message)
        return self._next_id

    def abort(self, request_id: int) -> None:
        """End a request; nothing more of it comes. Fine for one that has ended."""
        if self._homes.pop(request_id, None) is not None and self._writer is not None:
            self._writer.write(frame(Abort(request_id)))

    async def look(self, cells: int = 2048) -> Picture | None:
        """The cache's pages now; None if the engine is not there, or has no time to say."""
        if self._writer is None or self.state != "ready":
            return None
        answer: asyncio.Future[Picture | None] = asyncio.get_running_loop().create_future()
        self._looks.append(answer)
        if len(self._looks) == 1:  # those who ask meanwhile get the same answer
            self._owed = self._owed or time.monotonic()
            self._writer.write(frame(Look(cells)))
        try:
            return await asyncio.wait_for(asyncio.shield(answer), _LOOK_SECONDS)
        except TimeoutError:
            return None

    def fail_all(self, message: str) -> None:
        """Every open request gets an error now."""
        homes, self._homes = self._homes, {}
        for request_id, (inbox, _) in homes.items():
            inbox.fail(EngineGone(message))
            if self._writer is not None and self.state == "ready":
                self._writer.write(frame(Abort(request_id)))

    async def close(self) -> None:
        """End the engine process and everything here."""
        self.state = "stopping"
        for task in (self._supervisor, self._watchdog):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self.fail_all("the server is shutting down")
        self._answer_looks(None)
        await self._child.end()

    async def _supervise(self) -> None:
        pause = 0.5
        while True:
            begin = time.monotonic()
            try:
                await self._live_once()
            except Exception as error:  # no file, no process, no frame: whatever it is, another life may go better
                log.exception("the engine's process cannot be kept")
                self.failure = UsageError(f"the engine cannot be started: {error}")
            if self.failure is not None and self.facts is None:
                self.state = "failed"
                self._settled.set()
                return
            self._mourn()
            pause = 0.5 if time.monotonic() - begin > 60 else min(2 * pause, _LONGEST_PAUSE_SECONDS)
            log.error("the engine has died (exit %s); starting it again in %.1f s",
                      "?" if self._child.exit_code is None else self._child.exit_code, pause)  # fmt: skip
            self.restarts += 1
            self.on_death()
            await asyncio.sleep(pause)

    def _mourn(self) -> None:
        if self.state != "stopping" and self.facts is not None:
            self.state = "restarting"
            self.fail_all("the engine has died; it is being restarted")

    async def _live_once(self) -> None:
        """One life of the engine process, from its start to its end."""
        async with self._child.life() as streams:
            try:
                if streams is not None:
                    reader, self._writer = streams
                    self._writer.write(frame(Start(self.options)))
                    await self._read(reader)
            finally:
                self._writer, self._owed = None, None
                self._mourn()  # whoever waits is told before the process is awaited
                self._answer_looks(None)
        if self.facts is None and self.failure is None:
            self.failure = UsageError(
                f"the engine process ended while it was loading (exit {self._child.exit_code})",
                hint="what it wrote before is above",
            )

    async def _read(self, reader: asyncio.StreamReader) -> None:
        decoder = decoder_of(FromEngine)
        try:
            while True:
                head = await reader.readexactly(4)
                self._handle(decoder.decode(await reader.readexactly(frame_length(head))))
        except (asyncio.IncompleteReadError, ConnectionError):
            return

    def _handle(self, message: FromEngine) -> None:
        match message:
            case Step():
                self._deliver(message)
            case Log():
                log.log(message.level, "%s", message.text)
            case Refused():
                inbox, _ = self._homes.pop(message.id, (None, 0))
                if inbox is not None:
                    inbox.fail(Refusal(message.message, message.hint))
            case Picture():
                self._answer_looks(message)
            case Ready():
                self.facts, self.state, self.failure = message.facts, "ready", None
                self.on_ready(message.facts)
                self._settled.set()
            case Failed():
                self.failure = UsageError(message.message, message.hint)
        self._owed = time.monotonic() if self._homes or self._looks else None

    def _deliver(self, message: Step) -> None:
        homes = self._homes
        for event in message.events:
            home = homes.get(event.id)
            if home is None:  # aborted meanwhile
                continue
            if event.finish is not None:
                del homes[event.id]
            home[0].put(home[1], event)
        stats = message.stats
        if self.kept_back:
            stats = msgspec.structs.replace(stats, waiting=stats.waiting + self.kept_back)
        self.last_stats = stats
        self.on_stats(stats)

    async def _watch(self) -> None:
        """An engine that was asked and says nothing for too long is ended, and so restarted. One at rest is
        asked how it is."""
        while True:
            await asyncio.sleep(min(5.0, self.timeout_seconds / 4))
            if self.state == "ready" and self.silent_seconds > self.timeout_seconds:
                log.error("the engine has said nothing for %.0f s; it is ended", self.silent_seconds)
                self._child.kill()
            elif self.state == "ready" and self._owed is None and self._writer is not None:
                self._owed = time.monotonic()
                self._writer.write(frame(Abort(0)))  # nobody's: an engine at rest answers with its stats

    def _answer_looks(self, picture: Picture | None) -> None:
        looks, self._looks = self._looks, []
        for look in looks:
            if not look.done():
                look.set_result(picture)
