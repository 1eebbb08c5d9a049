"""A whole benchmark: servers one after another, each through the same levels of the same requests."""

import asyncio
import datetime
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from octavo.base.errors import BadValue, UsageError
from octavo.serve.bench.datasets import Dataset
from octavo.serve.bench.drive import Arrivals, Ask, Load, Target, drive, find_target
from octavo.serve.bench.figures import details, figures
from octavo.serve.client import Client

__all__ = ["BenchOptions", "labels", "run_bench"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    urls: Sequence[str]
    dataset: Dataset
    levels: Sequence[Arrivals] = (Arrivals(),)
    """the points of a sweep; each has requests of its own, so that none finds its prompt in a prefix cache"""
    ask: Ask = field(default_factory=Ask)
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    num_prompts: int | None = None
    """of each level; None: the dataset's number, or for a level with a limit four times that, at least 32"""
    num_warmups: int = 0
    goodput: dict[str, float] = field(default_factory=dict)
    """metric -> bound in seconds"""
    seed: int = 0
    timeout_seconds: float = 600.0
    save_detailed: bool = False

    def __post_init__(self) -> None:
        if self.num_prompts is not None and not 1 <= self.num_prompts <= 10_000_000:
            raise BadValue(f"num-prompts: {self.num_prompts} (1 or more)")
        if not 0 <= self.num_warmups <= 100_000 or self.seed < 0 or not self.timeout_seconds > 0:
            raise BadValue(
                f"num-warmups {self.num_warmups}, seed {self.seed} (0 or more), timeout {self.timeout_seconds} s"
            )
        if self.dataset.timed and (len(self.levels) > 1 or self.levels[0].rate != float("inf")):
            raise UsageError(
                "a trace has its own times, so there is no rate and no sweep", hint="--rate-scale makes it quicker"
            )

    def count(self, level: Arrivals) -> int | None:
        if self.num_prompts is None and level.limit is not None and self.dataset.made_up and not self.dataset.timed:
            return max(32, 4 * level.limit)
        return self.num_prompts


def run_bench(options: BenchOptions, progress: Progress) -> list[dict[str, Any]]:
    """A summary for each server and level. Raises OctavoError where a server cannot be measured at all."""
    targets = asyncio.run(_find(options))
    names = labels(targets)
    runs = []
    for target, name in zip(targets, names, strict=True):
        runs += asyncio.run(_measure(options, target, name, progress))
    return runs


def labels(targets: Sequence[Target]) -> list[str]:
    """The model and its cache; where two servers would have one label, their places too."""
    counts = Counter(target.label for target in targets)
    return [
        one.label if counts[one.label] == 1 else f"{one.label} {urllib.parse.urlsplit(one.url).netloc}"
        for one in targets
    ]


async def _find(options: BenchOptions) -> list[Target]:
    """All servers before any is measured: a mistake shows at once. The requests are of a form that all take."""
    targets = []
    for url in options.urls:
        client = Client(url, options.api_key, min(60.0, options.timeout_seconds))
        try:
            targets.append(await find_target(client, options.model, options.ask, options.dataset.made_up))
        finally:
            await client.close()
    ids = all(target.ask.style.ids for target in targets)
    return [replace(one, ask=replace(one.ask, style=replace(one.ask.style, ids=ids))) for one in targets]


async def _measure(options: BenchOptions, target: Target, name: str, progress: Progress) -> list[dict[str, Any]]:
    client = Client(target.url, options.api_key, options.timeout_seconds)
    try:
        if options.num_warmups:
            items, _ = options.dataset.items(options.num_warmups, len(options.levels), target.ask.style, options.seed)
            await drive(client, target, Load(items, [0.0] * len(items), options.levels[-1].limit))
        return [await _level(options, client, target, (name, at), progress) for at in range(len(options.levels))]
    finally:
        await client.close()


async def _level(
    options: BenchOptions, client: Client, target: Target, place: tuple[str, int], progress: Progress
) -> dict[str, Any]:
    """One point: the requests of level `place[1]`, and the run's own facts around the figures."""
    name, at = place
    arrivals = options.levels[at]
    items, again = options.dataset.items(options.count(arrivals), at, target.ask.style, options.seed)
    times = arrivals.times(items, np.random.default_rng([options.seed, at, 1]))
    part = f"{name}, {arrivals.limit} at once" if arrivals.limit else name
    cpu = time.process_time()
    samples = await drive(
        client, target, Load(items, times, arrivals.limit),
        keep_text=options.save_detailed, on_done=lambda done: progress(part, done, len(items)),
    )  # fmt: skip
    cpu = time.process_time() - cpu
    late = [max(0.0, one.sent - one.due) for one in samples] if any(times) else None
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "url": target.url, "label": name, "model_id": target.model, "kv_cache": target.kv_cache,
        "endpoint": "chat" if target.ask.style.chat else "completions",
        "prompts": _kind_of(items[0].prompt), "repeated_prompts": again,
        "num_prompts": len(items), "request_rate": None if np.isinf(arrivals.rate) else arrivals.rate,
        "burstiness": arrivals.burstiness, "max_concurrency": arrivals.limit, "seed": options.seed,
        "temperature": target.ask.temperature, "ignore_eos": target.ask.ignore_eos,
        **figures(samples, options.goodput, cpu),
        "p99_send_delay_ms": float(np.percentile(late, 99)) * 1e3 if late else None,
        **(details(samples) if options.save_detailed else {}),
    }  # fmt: skip


def _kind_of(prompt: Any) -> str:
    if isinstance(prompt, str):
        return "text"
    return "messages" if isinstance(prompt[0], dict) else "token ids"
