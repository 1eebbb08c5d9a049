"""The verb `eval` over servers: the same tasks, files and reports as in process; a column is a server.

Nothing is known of a server's distributions beyond the scored tokens, so lines have no KL. Each column goes through the
items by itself. The control asks the first server again, in another order and with other company.
"""

import time
import urllib.parse
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from octavo.base.errors import RequestError, UsageError
from octavo.base.table import Table
from octavo.evals.choices import blind_label, choice_line, pilot_of, warn_of_blind
from octavo.evals.echo import option_sum
from octavo.evals.generations import generated_line
from octavo.evals.records import Records
from octavo.evals.reports import CONTROL
from octavo.evals.run_eval import EvalOptions, EvalRun, Progress, file_name, open_items
from octavo.evals.server import Server, connect, urls_of
from octavo.evals.tasks import Task
from octavo.evals.tasks.items import ChoiceItem, GeneratedItem

__all__ = ["ask_all", "run_server_eval"]

Line = dict[str, Any]


def run_server_eval(options: EvalOptions, progress: Progress) -> EvalRun:
    """Score every item with every server; results are on disk as they come. Raises OctavoError."""
    begin = time.perf_counter()
    task = open_items(options, options.form)
    if task.form not in _WAYS:
        raise UsageError(
            f"{task.name}: {task.form} cannot be had from a server, which does not say where windows of tokens end",
            hint="give the model itself, not a URL; questions and generated answers can be had from servers",
        )
    columns = _columns([connect(url, options.server) for url in urls_of(options.model)])
    first = next(iter(columns.values()))
    pilot = None
    if options.form == "auto" and task.form == "letter":
        answers: list[str] = []
        ask_all(pilot_of(task, options.seed).items, _asker(first, task, options), first, lambda lines: answers.extend(
            line["answer"] for line in lines))  # fmt: skip
        pilot = blind_label(answers)
        if pilot["blind"]:
            warn_of_blind(first.model, pilot)
            task = open_items(options, "cloze")
    about = {
        "model": first.model, "task": task.name, "form": task.form, "shots": task.shots, "source": task.source,
        "items": len(task.items), "items_digest": task.digest(), "limit": options.limit, "seed": options.seed,
        "compute_dtype": "unknown", "device": first.url, "deterministic": None,
    }  # fmt: skip
    if options.control:
        other = max(1, options.server.concurrency * 3 // 8) if options.server.concurrency > 1 else 2
        columns[CONTROL] = replace(first, options=replace(options.server, concurrency=other))
    records = {
        name: Records(Path(options.out) / f"{name}.jsonl", {**about, "model": server.model, "device": server.url,
            "cache": None, "plan": None, "bytes_per_token": None}, options.resume)
        for name, server in columns.items()
    }  # fmt: skip
    for name, server in columns.items():
        _column(name, server, task, records[name], options, progress)
    about["letter_form"] = pilot  # not among what must be the same to go on: a server may not answer twice alike
    about["servers"] = {name: {"url": server.url, "model": server.model} for name, server in columns.items()}
    about["seconds"] = round(time.perf_counter() - begin, 1)
    return EvalRun(task, {name: record.path for name, record in records.items()}, about)


def _columns(servers: Sequence[Server]) -> dict[str, Server]:
    """By a name that says the model and the place, and can be a file's."""
    found: dict[str, Server] = {}
    for server in servers:
        place = urllib.parse.urlsplit(server.url)
        model = server.model.rstrip("/").rsplit("/")[-1]
        name = file_name(f"{model}-{place.netloc}{place.path}".replace(":", "-").replace("/", "-"))
        while name in found:
            name += "-again"
        found[name] = server
    return found


def _column(
    name: str, server: Server, task: Task, record: Records, options: EvalOptions, progress: Progress
) -> None:  # fmt: skip
    todo = [item for item in task.items if item.id not in record.items]
    if name == CONTROL:
        todo = [todo[index] for index in np.random.default_rng(options.seed + 1).permutation(len(todo)).tolist()]

    def keep(lines: list[Line]) -> None:
        record.add(lines)
        progress(name, len(record.items), len(task.items))

    progress(name, len(record.items), len(task.items))
    ask_all(todo, _asker(server, task, options), server, keep, options.wave)


def ask_all(
    items: Sequence[Any], ask: Callable[[Any], Line], server: Server, keep: Callable[[list[Line]], None],
    batch: int = 32,
) -> None:  # fmt: skip
    """Ask for all items, as many at once as the server's options say, and hand lines to `keep` as they come, `batch`
    at a time. Where one fails the rest is called off, what came is kept, and its error raised."""
    pool = ThreadPoolExecutor(server.options.concurrency, thread_name_prefix="octavo-eval")
    new: dict[Future[Line], None] = dict.fromkeys(pool.submit(ask, item) for item in items)
    ended: list[Future[Line]] = []
    try:
        for future in as_completed(list(new)):
            future.result()
            ended.append(future)
            if len(ended) == batch:
                _hand_over(new, ended, keep)
                ended = []
    except BaseException:
        server.stopped.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        _hand_over(new, [one for one in new if not one.cancelled() and one.exception() is None], keep)


def _hand_over(new: dict[Future[Line], None], ended: list[Future[Line]], keep: Callable[[list[Line]], None]) -> None:
    """Each once: what is handed over is no longer new, also where keeping it fails."""
    for one in ended:
        del new[one]
    if ended:
        keep([one.result() for one in ended])


def _asker(server: Server, task: Task, options: EvalOptions) -> Callable[[Any], Line]:
    way = _WAYS[task.form]

    def ask(item: Any) -> Line:
        try:
            return way(server, task, item, options.seed)
        except RequestError as error:
            raise RequestError(f"{item.id}: {error.message}", hint=error.hint) from error

    return ask


def _choice(server: Server, task: Task, item: ChoiceItem, seed: int) -> Line:
    contexts = item.contexts or (item.context,) * len(item.options)
    sums = [option_sum(server, *pair, seed) for pair in zip(contexts, item.options, strict=True)]
    return choice_line(item, sums, task.normalise)


def _generated(server: Server, task: Task, item: GeneratedItem, seed: int) -> Line:
    stop = {"stop": list(item.stop)} if item.stop else {}
    reply = server.complete(prompt=item.prompt, max_tokens=item.max_tokens, seed=seed, **stop)
    choice = reply["choices"][0]
    if not isinstance(choice.get("text"), str):
        raise UsageError(f"{server.url} answered without `choices[0].text`")
    tokens = (reply.get("usage") or {}).get("completion_tokens")
    return generated_line(item, choice["text"], tokens, str(choice.get("finish_reason")))


_WAYS: Table[Callable[[Server, Task, Any, int], Line]] = Table(
    "form of a server's task", {"letter": _choice, "cloze": _choice, "generated": _generated}
)
