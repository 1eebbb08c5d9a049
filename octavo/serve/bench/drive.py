"""Requests sent as arrivals and a limit say, and what is known of a server before it is timed."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from octavo.base.errors import BadValue, RequestError, UsageError
from octavo.serve.bench.datasets import Item, Style
from octavo.serve.bench.listen import Sample
from octavo.serve.client import Client, Reply, Unreachable, error_text
from octavo.serve.served import served_model

__all__ = ["Arrivals", "Ask", "Load", "Target", "drive", "find_target"]

PATHS = {False: "/v1/completions", True: "/v1/chat/completions"}
"""chat -> route"""


@dataclass(frozen=True)
class Arrivals:
    """`rate`: requests a second, infinite for all at once. The times between arrivals follow a gamma distribution of
    shape `burstiness`: 1 is a Poisson process, less comes in bursts, more is evener. `limit`: requests at once."""

    rate: float = math.inf
    burstiness: float = 1.0
    limit: int | None = None

    def __post_init__(self) -> None:
        if not self.rate > 0 or not 0 < self.burstiness < math.inf:
            raise BadValue(f"request-rate {self.rate}, burstiness {self.burstiness} (both above 0)")
        if self.limit is not None and not 1 <= self.limit <= 100_000:
            raise BadValue(f"concurrency: {self.limit} (1 to 100000)")

    def times(self, items: Sequence[Item], rng: np.random.Generator) -> list[float]:
        """Seconds from the start for each item; a trace's own times come first."""
        if items and items[0].at is not None:
            return [item.at or 0.0 for item in items]
        if math.isinf(self.rate):
            return [0.0] * len(items)
        gaps = rng.gamma(self.burstiness, 1 / (self.rate * self.burstiness), len(items))
        return (np.cumsum(gaps) - gaps[0]).tolist() if len(items) else []


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What every request says beside its prompt."""

    style: Style = field(default_factory=Style)
    temperature: float = 0.0
    ignore_eos: bool = False
    usage: bool = True
    """whether the stream is to end with the server's own counts"""

    def body(self, model: str, item: Item) -> bytes:
        wanted: dict[str, Any] = {
            "model": model, "messages" if self.style.chat else "prompt": item.prompt, "max_tokens": item.output_tokens,
            "temperature": self.temperature, "stream": True,
        }  # fmt: skip
        if self.usage:
            wanted["stream_options"] = {"include_usage": True}
        if self.ignore_eos:
            wanted["ignore_eos"] = True
        return msgspec.json.encode(wanted)


@dataclass(frozen=True)
class Target:
    """A server that answered: its model, its cache where it says, and the requests that it takes."""

    url: str
    model: str
    kv_cache: dict[str, Any] | None
    ask: Ask

    @property
    def label(self) -> str:
        dtype = (self.kv_cache or {}).get("dtype")
        return f"{self.model} {dtype}" if dtype else self.model


async def find_target(client: Client, model: str | None, ask: Ask, may_be_ids: bool) -> Target:
    """Ask for the models, then for one token: with token ids and usage if the server takes them, else without. Raises
    UsageError where it does not answer, RequestError where it refuses every form."""
    entry = await served_model(client, model)
    target = Target(client.url, str(entry["id"]), entry.get("kv_cache"), ask)
    refusal = None
    for ids in (True, False) if may_be_ids and not ask.style.chat else (False,):
        for usage in (True, False):
            tried = replace(ask, usage=usage, style=replace(ask.style, ids=ids))
            refusal = await _refusal(client, target.model, tried)
            if refusal is None:
                return replace(target, ask=tried)
            if refusal.status not in (400, 413, 422):
                break
    assert refusal is not None
    raise RequestError(f"{client.url}{PATHS[ask.style.chat]} refused one token: {error_text(refusal)}")


async def _refusal(client: Client, model: str, ask: Ask) -> Reply | None:
    """None where one token can be had; the prompt has the highest id, which the vocabulary may lack."""
    style = ask.style
    prompt = [style.vocab - 1] if style.ids else style.made_up(4, np.random.default_rng(0))
    sample = Sample(0.0, None)
    try:
        reply = await client.post(PATHS[style.chat], ask.body(model, Item(prompt, None, 1)), sample)
    except Unreachable as error:
        raise UsageError(f"{client.url}: {error}") from error
    if reply.status == 200 and sample.error is None:
        return None
    return reply if reply.status != 200 else Reply(400, (sample.error or "").encode(), reply.ended)


@dataclass(frozen=True)
class Load:
    """Items, when each is to be sent (seconds from the start), and how many may be under way at once."""

    items: Sequence[Item]
    times: Sequence[float]
    limit: int | None = None


async def drive(
    client: Client,
    target: Target,
    load: Load,
    *,
    keep_text: bool = False,
    on_done: Callable[[int], None] = lambda done: None,
) -> list[Sample]:
    """Send every item at its time, at most `limit` at once, and time the answers. What fails has an `error`."""
    bodies = [target.ask.body(target.model, item) for item in load.items]  # no work for this while the clock runs
    slots = asyncio.Semaphore(load.limit or max(1, len(load.items)))
    begin, done = time.perf_counter(), 0
    pairs = zip(load.items, load.times, strict=True)
    samples = [Sample(begin + at, item.input_tokens, keep_text) for item, at in pairs]

    async def one(sample: Sample, body: bytes) -> None:
        nonlocal done
        async with slots:
            sample.sent = time.perf_counter()
            await _timed(client, PATHS[target.ask.style.chat], body, sample)
        done += 1
        on_done(done)

    async with asyncio.TaskGroup() as tasks:
        for sample, body in sorted(zip(samples, bodies, strict=True), key=lambda pair: pair[0].due):
            if (pause := sample.due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            tasks.create_task(one(sample, body))
    return samples


async def _timed(client: Client, path: str, body: bytes, sample: Sample) -> None:
    try:
        reply = await client.post(path, body, sample)
    except Unreachable as error:
        sample.ended = time.perf_counter()
        sample.error = str(error)
        return
    sample.ended = reply.ended
    if reply.status != 200:
        sample.error = error_text(reply)
    elif not sample.closed:
        sample.error = sample.error or "the answer is no stream of events, or ended too early"
