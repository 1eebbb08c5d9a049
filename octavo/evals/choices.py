"""Items with options: which option a model chose, and whether its choices mean anything."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.base.log import log
from octavo.evals.scorer import Beside, Rows, option_sums
from octavo.evals.sequences import Scored

if TYPE_CHECKING:
    from octavo.evals.tasks.items import ChoiceItem, Task

__all__ = ["blind_label", "choice_line", "choice_record", "pilot_of", "warn_of_blind"]

_BLIND = 0.8
"""the share of answers with one label from which a form can show no damage"""
_PILOT = 150


def choice_record(
    item: "ChoiceItem", sequences: Sequence[Scored], rows: Rows, normalise: bool, beside: Beside | None = None
) -> dict[str, Any]:
    """One line of a result file, with what it is beside the baseline's distributions."""
    record = choice_line(item, option_sums(sequences, rows, len(item.options)), normalise)
    return record if beside is None else record | beside.as_record(sequences)


def choice_line(item: "ChoiceItem", sums: Sequence[float], normalise: bool) -> dict[str, Any]:
    """`sums`, in the line `logprobs`, are over an option's tokens; the answer is the best of them, or, with
    `normalise`, the best per character of the option (what lm-evaluation-harness calls acc_norm)."""
    weights = [max(length, 1) for length in item.lengths] if normalise else [1] * len(sums)
    weighed = [total / weight for total, weight in zip(sums, weights, strict=True)]
    best = max(range(len(weighed)), key=weighed.__getitem__)
    second = max(value for option, value in enumerate(weighed) if option != best)
    return {
        "id": item.id, "group": item.group, "answer": item.labels[best], "gold": item.labels[item.gold],
        "correct": best == item.gold, "logprobs": dict(zip(item.labels, sums, strict=True)),
        "margin": weighed[best] - second,
    }  # fmt: skip


def pilot_of(task: "Task", seed: int) -> "Task":
    """Some of a task's questions, to see whether a form tells them apart."""
    chosen: list[int] = np.random.default_rng(seed).permutation(len(task.items))[:_PILOT].tolist()
    items: Any = task.items
    return replace(task, items=tuple(items[index] for index in chosen))


def warn_of_blind(model: str, pilot: dict[str, Any]) -> None:
    """`pilot`: what `blind_label` said of this model."""
    log.warning(
        "%s answers %s to %.0f %% of %d questions in the letter form, which can show no damage then: "
        "the cloze form is used", model, pilot["label"], 100 * pilot["share"], pilot["items"],
    )  # fmt: skip


def blind_label(answers: Sequence[str]) -> dict[str, Any]:
    """The most frequent answer, its share, and whether that is nearly all."""
    label, count = Counter(answers).most_common(1)[0]
    share = count / len(answers)
    return {"label": label, "share": share, "items": len(answers), "blind": share >= _BLIND}
