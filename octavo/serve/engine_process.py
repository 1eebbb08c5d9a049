"""The engine's own process: `python -m octavo.serve.engine_process SOCKET`, started by the front.

Three threads. One reads frames, one writes them, and the main one owns the engine: it takes what was read, runs a
step, hands over what the step gave. When the front goes away, so does this process.
"""

import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.base.errors import OctavoError
from octavo.serve.orphan import end_with_parent
from octavo.serve.wire import (
    Abort,
    Add,
    Event,
    Failed,
    FromEngine,
    FromFront,
    Log,
    Logprob,
    Look,
    Picture,
    Ready,
    Refused,
    Sequence,
    Start,
    Stats,
    Step,
    decoder_of,
    frame,
    frame_length,
)

if TYPE_CHECKING:
    from octavo.engine.llm import LLM
    from octavo.engine.request import Request, TokenEvent, TokenLogprobs

__all__ = ["EngineLoop", "main"]

_SHOWN_SEQUENCES = 64
_CLIPS_EVERY_SECONDS = 10.0


@dataclass
class _Track:
    """What is known of a request beside the engine's own view."""

    id: int
    request: "Request"
    arrived: float
    admitted: float | None = None
    begun: bool = False


class EngineLoop:
    """Requests by number in, frames out. One thread calls everything."""

    def __init__(self, llm: "LLM", send: queue.SimpleQueue[FromEngine]):
        self.llm, self.engine, self._out = llm, llm.engine, send
        self._tracks: dict[str, _Track] = {}
        self._unscheduled: deque[_Track] = deque()
        self._prompt_tokens = self._generated = self._queried = self._hits = self._bytes_read = self._clipped = 0
        self._clips_read = time.monotonic()

    def handle(self, message: FromFront) -> None:
        match message:
            case Add():
                self._add(message)
            case Abort():
                self._tracks.pop(str(message.id), None)
                self.engine.abort(str(message.id))
                if not self.engine.busy:
                    self._out.put(Step([], self._stats()))
            case Look():
                self._out.put(self.picture(message.cells))

    def step(self) -> None:
        """Run a step of the engine and hand over its events."""
        events = self.engine.step()
        self._watch_admissions()
        bytes_per_token = self.llm.cache.bytes_per_token
        self._bytes_read += int(bytes_per_token * sum(r.computed for r in self.engine.scheduler.running))
        wired = [made for event in events if (made := self._wired(event)) is not None]
        self._generated += len(wired)
        self._out.put(Step(wired, self._stats()))

    def _add(self, message: Add) -> None:
        from octavo.engine.sampling import SamplingParams

        try:
            params = SamplingParams(**message.params)
            request = self.engine.add(str(message.id), message.tokens, params, salt=message.salt)
        except OctavoError as error:
            self._out.put(Refused(message.id, error.message, error.hint))
            return
        track = _Track(message.id, request, time.monotonic())
        self._tracks[request.id] = track
        self._unscheduled.append(track)

    def _watch_admissions(self) -> None:
        """Requests are first admitted in the order of arrival."""
        from octavo.engine.request import Status

        while self._unscheduled and self._unscheduled[0].request.status is not Status.WAITING:
            track = self._unscheduled.popleft()
            track.admitted = time.monotonic()
            if track.request.status is Status.RUNNING:
                prompt, cached = len(track.request.prompt), track.request.cached
                self._queried += prompt
                self._hits += cached
                self._prompt_tokens += prompt - cached

    def _wired(self, event: "TokenEvent") -> Event | None:
        track = self._tracks.get(event.request_id)
        if track is None:
            return None
        if event.finish_reason is not None:
            del self._tracks[event.request_id]
        logprob = None if event.logprobs is None else _logprob(event.logprobs)
        if track.begun:
            return Event(track.id, event.token, event.text, event.finish_reason, logprob)
        track.begun = True
        admitted, now = track.admitted or track.arrived, time.monotonic()
        prompt = [_logprob(one) for one in track.request.prompt_logprobs] or None
        return Event(
            track.id, event.token, event.text, event.finish_reason, logprob, prompt, track.request.cached,
            admitted - track.arrived, now - admitted,
        )  # fmt: skip

    def _stats(self) -> Stats:
        scheduler, pages = self.engine.scheduler, self.engine.pages
        if time.monotonic() - self._clips_read > _CLIPS_EVERY_SECONDS:  # counting waits for the device
            self._clips_read = time.monotonic()
            self._clipped = sum(count.clipped for count in self.llm.clipped)
        return Stats(
            len(scheduler.running), len(scheduler.waiting), pages.num_pages, pages.held, self.engine.times.steps,
            scheduler.preemptions, self._prompt_tokens, self._generated, self._queried, self._hits, self._bytes_read,
            self._clipped,
        )  # fmt: skip

    def picture(self, cells: int) -> Picture:
        """The state of the cache's pages, in at most `cells` cells."""
        pages = self.engine.pages
        cached = set(pages.prefix.retired) if pages.prefix is not None else set()
        counts = [pages.references(page) for page in range(pages.num_pages)]
        states = bytes(
            3 if count > 1 else 2 if count == 1 else 1 if page in cached else 0 for page, count in enumerate(counts)
        )
        per_cell = max(1, -(-len(states) // max(1, cells)))
        joined = bytes(max(states[at : at + per_cell]) for at in range(0, len(states), per_cell))
        return Picture(
            per_cell, joined, states.count(0), states.count(1), states.count(2) + states.count(3), states.count(3),
            [
                Sequence(int(one.id), one.status.value, len(one.prompt), one.output_count, len(one.pages))
                for one in self.engine.scheduler.running[:_SHOWN_SEQUENCES]
            ],
        )  # fmt: skip


class _Forward(logging.Handler):
    """Hands log records to the front, which knows where they go."""

    def __init__(self, out: queue.SimpleQueue[FromEngine]):
        super().__init__()
        self._frames = out

    def emit(self, record: logging.LogRecord) -> None:
        self._frames.put(Log(record.levelno, self.format(record)))


def main(path: str) -> None:
    """Connect, load, serve until the front is gone."""
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):  # either may reach the whole group; the front decides
        signal.signal(number, signal.SIG_IGN)
    link = socket.socket(socket.AF_UNIX)
    link.connect(path)
    read: queue.SimpleQueue[FromFront] = queue.SimpleQueue()
    out: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_reader, args=(link, read), name="octavo-read", daemon=True).start()
    writer = threading.Thread(target=_writer, args=(link, out), name="octavo-write", daemon=True)
    writer.start()
    log = logging.getLogger("octavo")
    log.addHandler(_Forward(out))
    log.setLevel(logging.INFO)
    start = read.get()
    assert isinstance(start, Start), f"the first message is {type(start).__name__}, not Start"
    loop = _load(start, out)
    if loop is None:
        out.put(None)
        writer.join()
        return
    try:
        while True:
            for message in _pending(read, wait=not loop.engine.busy):
                loop.handle(message)
            if loop.engine.busy:
                loop.step()
    except BaseException:
        log.exception("the engine has died")
        out.put(None)
        writer.join(timeout=5)
        os._exit(1)


def _load(start: Start, out: "queue.SimpleQueue[Any]") -> EngineLoop | None:
    import gc

    from octavo.engine.llm import LLM
    from octavo.serve.facts import facts_of

    try:
        llm = LLM(**start.options)
    except OctavoError as error:
        out.put(Failed(error.message, error.hint))
        return None
    gc.collect()
    gc.freeze()  # what is loaded stays: no collection need look at it again
    out.put(Ready(facts_of(llm)))
    return EngineLoop(llm, out)


def _pending(read: "queue.SimpleQueue[FromFront]", wait: bool) -> Iterator[FromFront]:
    """What has been read by now; with `wait` at least one message."""
    if wait:
        yield read.get()
    while True:
        try:
            yield read.get_nowait()
        except queue.Empty:
            return


def _reader(link: socket.socket, read: "queue.SimpleQueue[FromFront]") -> None:
    decoder = decoder_of(FromFront)
    stream = link.makefile("rb", buffering=1 << 16)
    try:
        while len(head := stream.read(4)) == 4:
            read.put(decoder.decode(stream.read(frame_length(head))))
    except OSError:
        pass
    finally:
        os._exit(0)  # nobody is left to serve; whatever the main thread is doing is not wanted any more


def _writer(link: socket.socket, out: "queue.SimpleQueue[Any]") -> None:
    try:
        while (message := out.get()) is not None:
            link.sendall(frame(message))
    except OSError:
        os._exit(0)


def _logprob(one: "TokenLogprobs") -> Logprob:
    return Logprob(one.token, one.logprob, list(one.top))


if __name__ == "__main__":
    main(sys.argv[1])
