"""Items with options: which option a model chose, and whether its choices mean anything."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from octavo.evals.scorer import Beside, Rows, option_sums
from octavo.evals.sequences import Scored

if TYPE_CHECKING:
    from octavo.evals.tasks.items import ChoiceItem

__all__ = ["blind_label", "choice_record"]

_BLIND = 0.8
"""the share of answers with one label from which a form can show no damage"""


def choice_record(
    item: "ChoiceItem", sequences: Sequence[Scored], rows: Rows, normalise: bool, beside: Beside | None = None
) -> dict[str, Any]:
    """One line of a result file. `logprobs` are sums over an option's tokens; the answer is the best of them, or, with
    `normalise`, the best per character of the option (what lm-evaluation-harness calls acc_norm)."""
    sums = option_sums(sequences, rows, len(item.options))
    weighed = [total / max(length, 1) for total, length in zip(sums, item.lengths, strict=True)] if normalise else sums
    best = max(range(len(weighed)), key=weighed.__getitem__)
    second = max(value for option, value in enumerate(weighed) if option != best)
    record: dict[str, Any] = {
        "id": item.id, "group": item.group, "answer": item.labels[best], "gold": item.labels[item.gold],
        "correct": best == item.gold, "logprobs": dict(zip(item.labels, sums, strict=True)),
        "margin": weighed[best] - second,
    }  # fmt: skip
    return record if beside is None else record | beside.as_record(sequences)


def blind_label(answers: Sequence[str]) -> dict[str, Any]:
    """The most frequent answer, its share, and whether that is nearly all."""
    label, count = Counter(answers).most_common(1)[0]
    share = count / len(answers)
    return {"label": label, "share": share, "items": len(answers), "blind": share >= _BLIND}
