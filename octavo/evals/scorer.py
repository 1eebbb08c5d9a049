"""Scores of items through one engine, and what its distributions are beside another's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from octavo.engine.llm import LLM
from octavo.evals.sequences import Scored, longest_first

__all__ = ["Beside", "Rows", "option_sums", "score_rows", "set_beside"]

Rows = list[Tensor]
"""for each sequence the log-probabilities of its scored positions, fp32 `[n, V]`"""

_CONFIDENT = math.log(0.5)


@dataclass(frozen=True)
class Beside:
    """At every scored position: KL(reference || this) in nats, whether both rank the same token first, and whether the
    reference gave its first token half of the probability or more."""

    kl: list[float] = field(default_factory=list)
    same_top: list[bool] = field(default_factory=list)
    confident: list[bool] = field(default_factory=list)

    def as_record(self, sequences: Sequence[Scored]) -> dict[str, Any]:
        """What a result file keeps of it (distance.py says what each is). `sequences`: those that were scored."""
        if not self.kl:
            return {}
        spans = [[one.first + 1, len(one.targets)] for one in sequences]
        assert sum(count for _, count in spans) == len(self.kl), f"{spans} are not {len(self.kl)} positions"
        return {
            "kl": sum(self.kl) / len(self.kl), "kl_positions": [round(kl, 9) for kl in self.kl], "kl_spans": spans,
            "same_top": sum(self.same_top) / len(self.same_top), "confident": sum(self.confident),
            "confident_same_top": sum(same for same, sure in zip(self.same_top, self.confident, strict=True) if sure),
        }  # fmt: skip


def score_rows(llm: LLM, sequences: Sequence[Scored]) -> Rows:
    """Run them, those that share a context one after the other, so that it is computed once."""
    rows: list[Tensor | None] = [None] * len(sequences)
    for wave in longest_first(sequences):
        chosen = [sequences[index] for index in wave]
        found = llm.score([one.tokens for one in chosen], first=[one.first for one in chosen]) if chosen else []
        for index, one in zip(wave, found, strict=True):
            rows[index] = one
    return [row for row in rows if row is not None]


def option_sums(sequences: Sequence[Scored], rows: Rows, options: int) -> list[float]:
    """Summed log-probability of each option of one item."""
    sums = [0.0] * options
    for one, row in zip(sequences, rows, strict=True):
        for position, pairs in enumerate(one.targets):
            for option, token in pairs:
                sums[option] += float(row[position, token])
    return sums


def set_beside(reference: Rows, rows: Rows) -> Beside:
    found = Beside()
    for p, q in zip(reference, rows, strict=True):
        found.kl.extend((p.exp() * (p - q)).sum(-1, dtype=torch.float64).clamp_min(0).tolist())
        found.same_top.extend((p.argmax(-1) == q.argmax(-1)).tolist())
        found.confident.extend((p.amax(-1) >= _CONFIDENT).tolist())
    return found
