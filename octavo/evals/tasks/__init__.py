"""Tasks by name: what `--task` means."""

from pathlib import Path

import numpy as np

from octavo.base.errors import UnknownChoice, UsageError
from octavo.calibrate.corpus import open_corpus
from octavo.evals.tasks.items import ChoiceItem, Task, TextItem
from octavo.evals.tasks.lines import read_questions
from octavo.evals.tasks.mmlu import read_mmlu
from octavo.evals.tasks.questions import FORMS, Question, make_item

__all__ = ["CHOICE_TASKS", "TEXT_TASKS", "ChoiceItem", "Task", "TextItem", "open_task"]

CHOICE_TASKS = ("arc-easy", "arc-challenge", "piqa", "truthfulqa", "hellaswag", "ceval")
TEXT_TASKS = ("wikitext2", "c4", "text")


def open_task(
    name: str, *, form: str = "auto", shots: int = 0, data: str | None = None, limit: int | None = None, seed: int = 0
) -> Task:
    """`mmlu[:GROUP]`; one of CHOICE_TASKS or a .jsonl file, from `data`; one of TEXT_TASKS for perplexity.

    `limit` takes that many items at random (by `seed`), in their order. Raises UsageError or UnknownChoice."""
    if form not in ("auto", *FORMS):
        raise UsageError(f"form: `{form}` (have auto, {', '.join(FORMS)})")
    kind, _, group = name.partition(":")
    if kind in TEXT_TASKS:
        documents = open_corpus(data or kind).documents()
        texts = [document for document in documents if isinstance(document, str)]
        return Task(name, "perplexity", (TextItem(kind, "", "\n\n".join(texts)),), False, 0, data or kind)
    if kind == "mmlu":
        questions, source = read_mmlu(group, data)
        usual = "letter"
    elif kind in CHOICE_TASKS or name.endswith((".jsonl", ".jsonl.gz")):
        path = Path(data if kind in CHOICE_TASKS and data is not None else name).expanduser()
        if not path.is_file():
            raise UsageError(f"no file `{path}` for the task {name}", hint="give its JSON lines with --data FILE.jsonl")
        questions, source, usual = read_questions(path, kind if kind in CHOICE_TASKS else path.stem), path.name, "cloze"
    else:
        known = ", ".join(("mmlu[:GROUP]", *CHOICE_TASKS, *TEXT_TASKS))
        raise UnknownChoice(f"unknown task: `{name}` (have {known}, FILE.jsonl)")
    chosen = usual if form == "auto" else form
    examples = _examples(kind, group, data, shots)
    items = tuple(make_item(one, chosen, examples.get(one.group, [])) for one in _some(questions, limit, seed))
    return Task(name, chosen, items, chosen == "cloze", shots, source)


def _some(questions: list[Question], limit: int | None, seed: int) -> list[Question]:
    if limit is None or limit >= len(questions):
        return questions
    if limit < 1:
        raise UsageError(f"limit: {limit} items", hint="leave --limit out for all")
    kept = np.sort(np.random.default_rng(seed).permutation(len(questions))[:limit])
    return [questions[index] for index in kept]


def _examples(kind: str, group: str, data: str | None, shots: int) -> dict[str, list[Question]]:
    """The first `shots` development questions of each group."""
    if shots == 0:
        return {}
    if not 0 < shots <= 32:
        raise UsageError(f"shots: {shots} (0 to 32)")
    if kind != "mmlu" or data is None or not Path(data).expanduser().exists():
        raise UsageError("examples come from MMLU's development questions", hint="name their folder or zip with --data")
    found: dict[str, list[Question]] = {}
    for one in read_mmlu(group, data, "dev")[0]:
        found.setdefault(one.group, []).append(one)
    if min(map(len, found.values())) < shots:
        raise UsageError(f"{shots} shots, and {data} has {min(map(len, found.values()))} examples of a subject")
    return {group: several[:shots] for group, several in found.items()}
