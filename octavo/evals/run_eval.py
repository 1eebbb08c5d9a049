"""The verb `eval`: one task through one model with several caches, side by side, item by item.

All caches of a run share the weights and take the same items in the same order, so that their distributions can be set
beside each other while both are in memory. The control is the first cache once more, with other company in its batches.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from octavo.base.errors import BadValue
from octavo.checkpoint.load import resolve_device
from octavo.engine.llm import LLM
from octavo.evals.choices import blind_label, pilot_of, warn_of_blind
from octavo.evals.records import Records
from octavo.evals.reports import CONTROL, choice_report, perplexity_report
from octavo.evals.server import ServerOptions, is_url
from octavo.evals.tasks import Task, open_task
from octavo.evals.ways import WAYS, Work

__all__ = ["EvalOptions", "EvalReport", "EvalRun", "Progress", "file_name", "open_items", "report_of", "run_eval"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What `octavo eval` takes. `engine`: options of the engine, apart from the cache's dtype."""

    model: str
    task: str
    dtypes: tuple[str, ...] = ("bf16", "int8")
    form: str = "auto"
    shots: int = 0
    data: str | None = None
    examples: str | None = None
    """what the `shots` before each question are from; None: found beside the data"""
    limit: int | None = None
    seed: int = 0
    out: str = "runs/eval"
    control: bool = True
    resume: bool = True
    wave: int = 32
    """items that run at once"""
    window: int = 1024
    """perplexity: tokens of a window"""
    engine: dict[str, Any] = field(default_factory=dict)
    server: ServerOptions = field(default_factory=ServerOptions)
    """where `model` is URLs of servers, with commas between them"""

    def __post_init__(self) -> None:
        if len(set(self.dtypes)) != len(self.dtypes) or not self.dtypes:
            raise BadValue(f"caches to compare: {', '.join(self.dtypes)}", hint="name each once")
        if not 1 <= self.wave <= 4096 or not 16 <= self.window <= 65536:
            raise BadValue(f"wave {self.wave} (1 to 4096), window {self.window} (16 to 65536)")


@dataclass(frozen=True)
class EvalRun:
    """`files`: the result file of each cache, the control's among them under `CONTROL`."""

    task: Task
    files: dict[str, Path]
    about: dict[str, Any]


def run_eval(options: EvalOptions, progress: Progress) -> EvalRun:
    """Score every item with every cache; results are on disk as they come. Raises OctavoError."""
    if is_url(options.model):
        from octavo.evals.server_eval import run_server_eval

        return run_server_eval(options, progress)
    begin = time.perf_counter()
    task = open_items(options, options.form)
    llms = _engines(options)
    first = llms[options.dtypes[0]]
    pilot = None
    if options.form == "auto" and task.form == "letter":
        pilot = _pilot(first, task, options)
        if pilot["blind"]:
            warn_of_blind(options.model, pilot)
            task = open_items(options, "cloze")
    about = {
        "model": first.source.name, "task": task.name, "form": task.form, "shots": task.shots, "source": task.source,
        "items": len(task.items), "items_digest": task.digest(), "limit": options.limit, "seed": options.seed,
        "compute_dtype": first.dtype, "device": first.device, "deterministic": first.options.deterministic,
        "letter_form": pilot,
    }  # fmt: skip
    folder = Path(options.out)
    records = {
        name: Records(folder / f"{file_name(name)}.jsonl", {**about, "cache": llm.cache.dtype,
            "plan": llm.cache.plan, "bytes_per_token": llm.cache.bytes_per_token}, options.resume)
        for name, llm in llms.items()
    }  # fmt: skip
    _run(options, task, llms, records, progress)
    about["seconds"] = round(time.perf_counter() - begin, 1)
    return EvalRun(task, {name: record.path for name, record in records.items()}, about)


def open_items(options: EvalOptions, form: str) -> Task:
    return open_task(
        options.task, form=form, shots=options.shots, data=options.data, examples=options.examples,
        limit=options.limit, seed=options.seed,
    )  # fmt: skip


def file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in name)


def _engines(options: EvalOptions) -> dict[str, LLM]:
    """One for each cache; small pages, so that contexts are shared where they end."""
    first, *others = options.dtypes
    settings: dict[str, Any] = {
        "kv_cache_memory": "65536tok", "max_num_seqs": 256, "max_num_batched_tokens": 2048, **options.engine,
    }  # fmt: skip
    if "block_size" not in settings and resolve_device(settings.get("device", "auto")) == "cpu":
        settings["block_size"] = 8
    base = LLM(options.model, kv_cache_dtype=first, **settings)
    llms = {first: base} | {dtype: base.with_cache(kv_cache_dtype=dtype) for dtype in others}
    if options.control:
        llms[CONTROL] = base.with_cache(max_num_batched_tokens=768)
    return llms


def _pilot(llm: LLM, task: Task, options: EvalOptions) -> dict[str, Any]:
    """Whether this model's answers in the letter form tell its questions apart, by some of them."""
    some = pilot_of(task, options.seed)
    way = WAYS[task.form]
    work = way.work(some, llm, options.window)
    records = [row for part in _parts(work, options.wave) for row in way.records(some, llm, part, {})]
    return blind_label([row["answer"] for row in records])


def _run(
    options: EvalOptions, task: Task, llms: dict[str, LLM], records: dict[str, Records], progress: Progress
) -> None:
    done = set.intersection(*(set(record.items) for record in records.values()))
    way = WAYS[task.form]
    work = way.work(task, llms[options.dtypes[0]], options.window)
    todo = [pair for pair in work if pair[0].id not in done]
    count = len(work) - len(todo)
    progress(task.name, count, len(work))
    for part in _parts(todo, options.wave if way.together else 1):
        beside = {}
        for name, llm in llms.items():
            mixed = _shuffled(part, options.seed) if name == CONTROL else part
            found = way.records(task, llm, mixed, beside)
            records[name].add([record for record in found if record["id"] not in records[name].items])
        count += len(part)
        progress(task.name, count, len(work))


def _shuffled(part: Sequence[Work], seed: int) -> list[Work]:
    order: list[int] = np.random.default_rng(seed + 1).permutation(len(part)).tolist()
    return [part[index] for index in order]


def _parts(items: list[Work], size: int) -> Iterator[list[Work]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


@dataclass(frozen=True)
class EvalReport:
    """`scores`: what people read; `data`: the same and more for machines."""

    about: dict[str, Any]
    scores: dict[str, tuple[str, str, str]]
    pairs: list[dict[str, Any]]
    files: dict[str, str]
    data: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {**self.about, **self.data, "files": self.files}


def report_of(run: EvalRun, margin: float) -> EvalReport:
    """Scores with intervals, every cache beside the first, the control apart. Raises UsageError."""
    files = {name: str(path) for name, path in run.files.items()}
    make = perplexity_report if run.task.form == "perplexity" else choice_report
    scores, pairs, data = make(run.files, margin)
    return EvalReport(run.about, scores, pairs, files, data)
