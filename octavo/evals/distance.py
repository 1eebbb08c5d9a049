"""How far the distributions of one result file are from the baseline's, over all its positions. Pure arithmetic.

A row of a result file says of its item: `kl_positions`, KL(baseline || this) in nats at each scored position;
`kl_spans`, where those are, as [index of the first scored token in its sequence, how many]; `same_top`, the share of
them where both rank the same token first; `confident`, how many of them the baseline gave a token half of the
probability or more, and `confident_same_top`, at how many of those both rank the same token first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from octavo.evals.statistics import bootstrap_ratio

__all__ = ["Distance", "PositionBucket", "distance_of"]

_FIRST_EDGE = 64
Row = Mapping[str, Any]


@dataclass(frozen=True)
class PositionBucket:
    """Mean KL in nats over the `tokens` scored tokens whose index in their sequence is in [begin, end)."""

    begin: int
    end: int
    tokens: int
    mean: float


@dataclass(frozen=True)
class Distance:
    """KL in nats, shares from 0 to 1; None where the rows do not say. `kl_mean_ci95` resamples whole items, since the
    positions of one item are alike."""

    kl_tokens: int = 0
    kl_mean: float | None = None
    kl_mean_ci95: tuple[float, float] | None = None
    kl_median: float | None = None
    kl_p99: float | None = None
    kl_p999: float | None = None
    kl_max: float | None = None
    kl_by_position: tuple[PositionBucket, ...] = ()
    same_top: float | None = None
    same_top_confident: float | None = None
    """of the positions where the baseline gave one token half of the probability or more"""
    confident_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def distance_of(rows: Iterable[Row]) -> Distance:
    """Of the rows of one file; files without `kl_positions` may have one `kl` for each item."""
    rows = list(rows)
    parts = [np.asarray(_kls(row), dtype=np.float64) for row in rows]
    kls = np.concatenate([np.zeros(0), *parts])
    tops = [(row["same_top"] * max(len(part), 1), max(len(part), 1))
            for row, part in zip(rows, parts, strict=True) if "same_top" in row]  # fmt: skip
    confident = sum(row.get("confident", 0) for row in rows)
    same = sum(row.get("confident_same_top", 0) for row in rows)
    shares = Distance(
        same_top=sum(top for top, _ in tops) / sum(n for _, n in tops) if tops else None,
        same_top_confident=same / confident if confident else None, confident_tokens=confident,
    )  # fmt: skip
    if not len(kls):
        return shares
    median, p99, p999 = (float(value) for value in np.quantile(kls, [0.5, 0.99, 0.999]))
    known = [part for part in parts if len(part)]
    interval = bootstrap_ratio([float(part.sum()) for part in known], [len(part) for part in known])
    return replace(
        shares, kl_tokens=len(kls), kl_mean=float(kls.mean()), kl_mean_ci95=interval, kl_median=median, kl_p99=p99,
        kl_p999=p999, kl_max=float(kls.max()), kl_by_position=_by_position(rows, parts),
    )  # fmt: skip


def _kls(row: Row) -> Sequence[float]:
    return row.get("kl_positions") or ([row["kl"]] if "kl" in row else [])


def _by_position(rows: Sequence[Row], parts: Sequence[np.ndarray]) -> tuple[PositionBucket, ...]:
    """[0, 64), [64, 128), [128, 256) and so on, each twice as far as the last; those without a token are left out."""
    known = [(row["kl_spans"], part) for row, part in zip(rows, parts, strict=True) if "kl_spans" in row]
    if not known:
        return ()
    places = np.concatenate([np.arange(first, first + count) for spans, _ in known for first, count in spans])
    kls = np.concatenate([part for _, part in known])
    found, begin, end = [], 0, _FIRST_EDGE
    while begin <= places.max():
        chosen = kls[(places >= begin) & (places < end)]
        if len(chosen):
            found.append(PositionBucket(begin, end, len(chosen), float(chosen.mean())))
        begin, end = end, 2 * end
    return tuple(found)
