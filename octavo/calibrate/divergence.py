"""How far one model's next-token distributions are from another's, position by position."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Divergence", "measure", "token_divergence"]


@dataclass(frozen=True)
class Divergence:
    """Over `tokens` positions: KL(reference || other) in nats, and how often both rank the same token first."""

    tokens: int
    kl_mean: float
    kl_median: float
    kl_p99: float
    kl_max: float
    same_top: float


def token_divergence(reference: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[T, V]` of both -> KL per position `[T]` (fp64) and whether the top token agrees `[T]`."""
    kl = torch.empty(len(reference), dtype=torch.float64)
    for begin in range(0, len(reference), 64):  # fp64 of the whole would be gigabytes for a long text
        p, q = reference[begin : begin + 64].double(), other[begin : begin + 64].double()
        kl[begin : begin + 64] = (p.exp() * (p - q)).sum(-1)
    return kl, reference.argmax(-1) == other.argmax(-1)


def measure(pairs: Sequence[tuple[Tensor, Tensor]]) -> Divergence:
    """Pairs of `[T, V]` log-probabilities, (reference, other), taken together."""
    parts = [token_divergence(reference, other) for reference, other in pairs]
    kl = torch.cat([part[0] for part in parts])
    same = torch.cat([part[1] for part in parts])
    return Divergence(
        len(kl), float(kl.mean()), float(kl.median()), float(kl.quantile(0.99)), float(kl.max()),
        float(same.double().mean()),
    )  # fmt: skip
