"""The table of tasks: where each one's items are from, and in which forms they can be asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from octavo.base.errors import UsageError
from octavo.base.table import Table
from octavo.evals.tasks.ceval import read_ceval
from octavo.evals.tasks.items import GeneratedItem, Task, TextItem
from octavo.evals.tasks.layouts import Layout, hellaswag, plain, read_questions, truthfulqa, winogrande
from octavo.evals.tasks.mmlu import read_mmlu
from octavo.evals.tasks.needles import read_needles
from octavo.evals.tasks.places import DEV, TEST, DataSet, HubSet, rows_of
from octavo.evals.tasks.problems import problem_item, read_gsm8k, read_longeval
from octavo.evals.tasks.questions import Question, make_item
from octavo.evals.tasks.rows import split_name
from octavo.evals.tasks.running_text import read_running_text
from octavo.evals.tasks.shots import Asked, development_data, shots_for

__all__ = ["TASKS", "Entry", "Wanted", "own_file"]

One = TypeVar("One")
Ask = TypeVar("Ask", bound=Asked)


@dataclass(frozen=True)
class Wanted:
    """What was asked for. `group` is what stands after the colon; `form` is one that the task has."""

    name: str
    group: str
    form: str
    shots: int
    data: str | None
    examples: str | None
    limit: int | None
    seed: int


class Entry(Protocol):
    """`forms`: the usual one first."""

    @property
    def forms(self) -> tuple[str, ...]: ...
    def open(self, wanted: Wanted) -> Task: ...


@dataclass(frozen=True)
class Choices:
    """`read` takes a group, the data and a split, and gives questions and their source."""

    read: Callable[[str, str | None, str], tuple[list[Question], str]]
    forms: tuple[str, ...] = ("cloze", "letter")

    def open(self, wanted: Wanted) -> Task:
        questions, source = self.read(wanted.group, wanted.data, TEST)
        chosen = _some(questions, wanted)
        shots = _shots(wanted, chosen, lambda data: self.read(wanted.group, data, DEV)[0])
        items = tuple(make_item(one, wanted.form, before) for one, before in zip(chosen, shots, strict=True))
        return Task(wanted.name, wanted.form, items, wanted.form == "cloze", wanted.shots, source)


@dataclass(frozen=True)
class Problems:
    """GSM8K: a prompt with worked examples."""

    forms: tuple[str, ...] = ("generated",)

    def open(self, wanted: Wanted) -> Task:
        _no_group(wanted)
        problems, source = read_gsm8k(wanted.data, TEST)
        chosen = _some(problems, wanted)
        shots = _shots(wanted, chosen, lambda data: read_gsm8k(data, DEV)[0])
        items = tuple(problem_item(one, before) for one, before in zip(chosen, shots, strict=True))
        return Task(wanted.name, wanted.form, items, False, wanted.shots, source)


@dataclass(frozen=True)
class Prompts:
    """Items that are prompts already; they take no examples."""

    read: Callable[[str, str | None], tuple[list[GeneratedItem], str]]
    forms: tuple[str, ...] = ("generated",)

    def open(self, wanted: Wanted) -> Task:
        _no_shots(wanted)
        items, source = self.read(wanted.group, wanted.data)
        return Task(wanted.name, wanted.form, tuple(_some(items, wanted)), False, 0, source)


@dataclass(frozen=True)
class RunningText:
    """Perplexity."""

    forms: tuple[str, ...] = ("perplexity",)

    def open(self, wanted: Wanted) -> Task:
        _no_shots(wanted)
        text, source = read_running_text(wanted.name, wanted.data)
        return Task(wanted.name, wanted.form, (TextItem(wanted.name, "", text),), False, 0, source)


def _set_of(wanted: DataSet, layout: Layout) -> Callable[[str, str | None, str], tuple[list[Question], str]]:
    def read(group: str, data: str | None, split: str) -> tuple[list[Question], str]:
        if group:
            raise UsageError(f"{wanted.name} has no groups, so not `{group}`", hint=f"--task {wanted.name}")
        source, rows = rows_of(wanted, data, split)
        return read_questions(rows, wanted.name, layout, source), source

    return read


def own_file(name: str) -> Choices | None:
    """The entry for a file of questions of one's own; None where `name` is no such file's."""
    base, kind = split_name(Path(name).name)
    return Choices(_set_of(DataSet(base, base), plain)) if kind else None


def _arc(name: str, config: str) -> Choices:
    hub = HubSet("allenai/ai2_arc", config, "test", "validation")
    return Choices(_set_of(DataSet(name, name.replace("-", "_"), hub), plain))


_WINOGRANDE = DataSet("winogrande", "winogrande", HubSet("allenai/winogrande", "winogrande_xl", "validation", "train"))
_TRUTHFULQA = DataSet("truthfulqa", "truthfulqa", HubSet("truthfulqa/truthful_qa", "multiple_choice", "validation",
                      None), also=("mc_task", "TruthfulQA"))  # fmt: skip
_HELLASWAG = DataSet("hellaswag", "hellaswag", HubSet("Rowan/hellaswag", "default", "validation", "train"))
_PIQA = DataSet("piqa", "piqa", HubSet("ybisk/piqa", "plain_text", "validation", "train"))

TASKS: Table[Entry] = Table(
    "task",
    {
        "mmlu": Choices(read_mmlu, ("letter", "cloze")),
        "ceval": Choices(read_ceval, ("letter", "cloze")),
        "arc-easy": _arc("arc-easy", "ARC-Easy"),
        "arc-challenge": _arc("arc-challenge", "ARC-Challenge"),
        "piqa": Choices(_set_of(_PIQA, plain)),
        "winogrande": Choices(_set_of(_WINOGRANDE, winogrande), ("cloze",)),
        "hellaswag": Choices(_set_of(_HELLASWAG, hellaswag), ("cloze",)),
        "truthfulqa": Choices(_set_of(_TRUTHFULQA, truthfulqa), ("cloze",)),
        "gsm8k": Problems(),
        "longeval-lines": Prompts(read_longeval),
        "needles": Prompts(read_needles),
        "wikitext2": RunningText(),
        "c4": RunningText(),
        "text": RunningText(),
    },
    aliases={"arc_easy": "arc-easy", "arc_challenge": "arc-challenge", "truthfulqa_mc1": "truthfulqa",
             "wikitext": "wikitext2", "longeval": "longeval-lines"},
)  # fmt: skip
"""truthfulqa has no letter form: its right answer stands first in every row, so a model that always says A would win"""


def _some(items: Sequence[One], wanted: Wanted) -> list[One]:
    """`limit` of them at random, in their order."""
    limit = wanted.limit
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise UsageError(f"limit: {limit} items", hint="leave --limit out for all")
    kept = np.sort(np.random.default_rng(wanted.seed).permutation(len(items))[:limit])
    return [items[index] for index in kept]


def _shots(wanted: Wanted, chosen: Sequence[Ask], read: Callable[[str | None], list[Ask]]) -> list[list[Ask]]:
    if wanted.shots == 0 and wanted.examples is None:
        return [[] for _ in chosen]
    if wanted.shots == 0:
        raise UsageError("examples are named and none are asked for", hint="say how many with --shots")
    data = development_data(wanted.data, wanted.examples, wanted.shots)
    return shots_for(chosen, read(data), wanted.shots)


def _no_shots(wanted: Wanted) -> None:
    if wanted.shots or wanted.examples is not None:
        raise UsageError(f"the task {wanted.name} takes no examples", hint="leave out --shots and --examples")


def _no_group(wanted: Wanted) -> None:
    if wanted.group:
        raise UsageError(f"{wanted.name.partition(':')[0]} has no groups, so not `{wanted.group}`")
