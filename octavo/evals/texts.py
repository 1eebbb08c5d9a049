"""Perplexity: running text in windows, each scored from its second token on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.evals.scorer import Beside, Rows
from octavo.evals.sequences import Scored

if TYPE_CHECKING:
    from octavo.checkpoint.tokenizer import Tokenizer
    from octavo.evals.tasks.items import TextItem

__all__ = ["TextWindow", "text_record", "text_sequences"]


@dataclass(frozen=True)
class TextWindow:
    id: str
    group: str


def text_sequences(
    tokenizer: "Tokenizer", items: Sequence["TextItem"], window: int
) -> Iterator[tuple[TextWindow, list[Scored]]]:
    """Windows of `window` tokens one after the other, as perplexities of WikiText-2 are usually taken; a rest of fewer
    than two tokens is left out."""
    for item in items:
        ids = tokenizer.encode(item.text)
        for number, begin in enumerate(range(0, len(ids), window)):
            part = ids[begin : begin + window]
            if len(part) > 1:
                targets = tuple(((0, token),) for token in part[1:])
                yield TextWindow(f"{item.id}/{number}", item.group), [Scored(tuple(part[:-1]), 0, targets)]


def text_record(
    item: TextWindow, sequences: Sequence[Scored], rows: Rows, beside: Beside | None = None
) -> dict[str, Any]:
    """One line of a result file: `nll` in nats over `tokens` tokens, and how often the next token was ranked first."""
    [one], [row] = sequences, rows
    tokens = [pairs[0][1] for pairs in one.targets]
    nll = -sum(float(row[position, token]) for position, token in enumerate(tokens))
    hits = sum(int(row[position].argmax()) == token for position, token in enumerate(tokens))
    record: dict[str, Any] = {
        "id": item.id, "group": item.group, "nll": nll, "tokens": len(tokens), "top_hits": hits,
    }  # fmt: skip
    return record if beside is None else record | beside.as_record(sequences)
