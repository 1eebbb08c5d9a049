"""From an item of a task to the token sequences that score it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.base.errors import RequestError

if TYPE_CHECKING:
    from octavo.checkpoint.tokenizer import Tokenizer
    from octavo.evals.tasks.items import ChoiceItem

__all__ = ["Scored", "choice_sequences"]


@dataclass(frozen=True)
class Scored:
    """Token ids to run; from position `first` on, row r of the log-probabilities (the distribution of what follows) is
    read at `targets[r]`: (option, token id) pairs, whose log-probabilities are summed up by option."""

    tokens: tuple[int, ...]
    first: int
    targets: tuple[tuple[tuple[int, int], ...], ...]


def choice_sequences(tokenizer: "Tokenizer", item: "ChoiceItem", longest: int) -> list[Scored]:
    """One sequence for each option, but one for all options that are a single token after the same context.

    Context and option are encoded together and split where the context alone would end, as lm-evaluation-harness does.
    Raises RequestError naming an item that does not fit in `longest` tokens, or an option without a token."""
    shared: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    alone: list[Scored] = []
    for option, text in enumerate(item.options):
        context = item.contexts[option] if item.contexts else item.context
        whole, start = tokenizer.encode(context + text), len(tokenizer.encode(context))
        rest = whole[start:]
        if not rest or start == 0:
            raise RequestError(f"{item.id}: option {item.labels[option]} has no token after its context")
        if len(whole) - 1 > longest:
            raise RequestError(
                f"{item.id} has {len(whole)} tokens and the model takes {longest}",
                hint="leave it out, use fewer --shots, or raise --max-model-len",
            )
        if len(rest) == 1:
            shared.setdefault(tuple(whole[:-1]), []).append((option, rest[0]))
        else:
            targets = tuple(((option, token),) for token in rest)
            alone.append(Scored(tuple(whole[:-1]), start - 1, targets))
    together = [Scored(tokens, len(tokens) - 1, (tuple(pairs),)) for tokens, pairs in shared.items()]
    return together + alone


def longest_first(sequences: Sequence[Scored]) -> list[list[int]]:
    """Indices in two waves: of those that begin with the same context the longest alone, then the others, which find
    its pages."""
    leaders: dict[tuple[int, ...], int] = {}
    for index, one in enumerate(sequences):
        start = one.tokens[: one.first + 1]
        if start not in leaders or len(one.tokens) > len(sequences[leaders[start]].tokens):
            leaders[start] = index
    first = sorted(leaders.values())
    chosen = set(first)
    return [first, [index for index in range(len(sequences)) if index not in chosen]]
