"""How the items of each form are run: what they become as tokens, and what is written of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.base.table import Table
from octavo.engine.llm import LLM
from octavo.evals.choices import choice_record
from octavo.evals.generations import generated_records, prompts_of
from octavo.evals.scorer import Rows, score_rows, set_beside
from octavo.evals.sequences import Scored, choice_sequences
from octavo.evals.tasks.items import Task
from octavo.evals.texts import text_record, text_sequences

__all__ = ["WAYS", "Way", "Work"]

Work = tuple[Any, Any]
"""an item (anything with `id`), and what is run for it"""
Beside = dict[str, Rows]
"""by item: the baseline's log-probabilities; who finds none there is the baseline, and puts its own"""


@dataclass(frozen=True)
class Way:
    """`work(task, llm, window)`: every item with what is run, the same for all caches; raises RequestError for what
    does not fit. `records(task, llm, work, beside)`: lines of a result file. `together`: whether many run at once."""

    work: Callable[[Task, LLM, int], list[Work]]
    records: Callable[[Task, LLM, Sequence[Work], Beside], list[dict[str, Any]]]
    together: bool = True


def _items(task: Task) -> Any:
    """All are of the kind that the form has."""
    return task.items


def _choice_work(task: Task, llm: LLM, window: int) -> list[Work]:
    return [(item, choice_sequences(llm.tokenizer, item, llm.cache.max_model_len)) for item in _items(task)]


def _choice_records(task: Task, llm: LLM, work: Sequence[Work], beside: Beside) -> list[dict[str, Any]]:
    return [
        choice_record(item, sequences, rows, task.normalise, _beside(beside, item.id, rows))
        for item, sequences, rows in _scored(llm, work)
    ]


def _text_work(task: Task, llm: LLM, window: int) -> list[Work]:
    return list(text_sequences(llm.tokenizer, _items(task), min(window, llm.cache.max_model_len)))


def _text_records(task: Task, llm: LLM, work: Sequence[Work], beside: Beside) -> list[dict[str, Any]]:
    return [
        text_record(item, sequences, rows, _beside(beside, item.id, rows))
        for item, sequences, rows in _scored(llm, work)
    ]


def _generated_work(task: Task, llm: LLM, window: int) -> list[Work]:
    return list(prompts_of(llm.tokenizer, _items(task), llm.cache.max_model_len))


def _generated_records(task: Task, llm: LLM, work: Sequence[Work], beside: Beside) -> list[dict[str, Any]]:
    return generated_records(llm, work)


def _scored(llm: LLM, work: Sequence[tuple[Any, list[Scored]]]) -> Iterator[tuple[Any, list[Scored], Rows]]:
    """All sequences of all items at once; what belongs to each item."""
    rows = score_rows(llm, [one for _, several in work for one in several])
    begin = 0
    for item, several in work:
        yield item, several, rows[begin : begin + len(several)]
        begin += len(several)


def _beside(beside: Beside, id: str, rows: Rows) -> Any:
    if id in beside:
        return set_beside(beside[id], rows)
    beside[id] = rows
    return None


_CHOICES = Way(_choice_work, _choice_records)
WAYS = Table(
    "form",
    {
        "letter": _CHOICES,
        "cloze": _CHOICES,
        "perplexity": Way(_text_work, _text_records, together=False),
        "generated": Way(_generated_work, _generated_records),
    },
)
