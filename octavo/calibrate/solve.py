"""The plan solver: which scheme for which layer's K and V. Pure arithmetic, exact.

Divergences of layers are taken to add up. Minimise their sum under a budget of bytes, or bytes under a budget of
divergence: a multiple-choice knapsack, solved by merging the layers' Pareto fronts (Nemhauser and Ullmann, 1969): a
partial plan that costs more bytes *and* more divergence than another can be no part of an optimum.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.base.errors import BadValue, CapacityError
from octavo.base.units import parse_bytes

__all__ = ["Budget", "Choice", "Solution", "front", "parse_budget", "solve"]

_MOST = 20_000
"""points kept of a front: beyond it, the nearest in bytes are merged, by less than 1 / 20000 of the budget"""


@dataclass(frozen=True)
class Choice:
    """One way to store one layer: what it is called, bytes of its page, and the KL it adds."""

    name: str
    page_bytes: int
    kl: float


@dataclass(frozen=True)
class Solution:
    choices: tuple[int, ...]
    """per layer, the index of its choice"""
    page_bytes: int
    kl: float


@dataclass(frozen=True)
class Budget:
    """Exactly one of: bytes of the whole cache, bytes a token, bits a number, or the mean KL allowed."""

    text: str
    total_bytes: int | None = None
    token_bytes: float | None = None
    bits: float | None = None
    kl: float | None = None


def parse_budget(text: str) -> Budget:
    """`24GiB`, `300KiB/token`, `4.5bit` or `kl<0.01`, what stands behind `auto:`. Raises BadValue."""
    hint = "write auto:24GiB, auto:300KiB/token, auto:4.5bit or auto:kl<0.01"
    try:
        if found := re.fullmatch(r"kl\s*<=?\s*([0-9.eE+-]+)", text.strip()):
            budget = Budget(text, kl=float(found[1]))
        elif found := re.fullmatch(r"([0-9.]+)\s*bits?", text.strip()):
            budget = Budget(text, bits=float(found[1]))
        elif text.strip().endswith("/token"):
            budget = Budget(text, token_bytes=float(parse_bytes(text.strip().removesuffix("/token"))))
        else:
            budget = Budget(text, total_bytes=parse_bytes(text))
    except ValueError as error:
        raise BadValue(f"not a budget for the cache: `{text}`", hint=hint) from error
    value = next(v for v in (budget.kl, budget.bits, budget.token_bytes, budget.total_bytes) if v is not None)
    if not 0 < value < float("inf"):
        raise BadValue(f"not a budget for the cache: `{text}`", hint=hint)
    return budget


@dataclass(frozen=True)
class _Point:
    page_bytes: int
    kl: float
    before: "_Point | None"
    choice: int


def front(layers: Sequence[Sequence[Choice]]) -> list[Solution]:
    """Every plan that no other beats in both bytes and KL; fewest bytes first."""
    points = [_Point(0, 0.0, None, -1)]
    for choices in layers:
        grown = [
            _Point(point.page_bytes + choice.page_bytes, point.kl + choice.kl, point, number)
            for point in points
            for number, choice in enumerate(choices)
        ]
        points = _thinned(_undominated(grown))
    return [Solution(_choices(point), point.page_bytes, point.kl) for point in points]


def _undominated(points: list[_Point]) -> list[_Point]:
    kept: list[_Point] = []
    for point in sorted(points, key=lambda p: (p.page_bytes, p.kl)):
        if not kept or point.kl < kept[-1].kl:
            kept.append(point)
    return kept


def _thinned(points: list[_Point]) -> list[_Point]:
    if len(points) <= _MOST:
        return points
    step = (points[-1].page_bytes - points[0].page_bytes) / _MOST
    kept: dict[int, _Point] = {}
    for point in points:  # of each bucket the last: the most bytes and the least divergence, so a budget is kept
        kept[int((point.page_bytes - points[0].page_bytes) / step)] = point
    return [points[0], *(point for point in kept.values() if point is not points[0])]


def _choices(point: _Point) -> tuple[int, ...]:
    found: list[int] = []
    while point.before is not None:
        found.append(point.choice)
        point = point.before
    return tuple(reversed(found))


def solve(layers: Sequence[Sequence[Choice]], *, page_bytes: float | None = None, kl: float | None = None) -> Solution:
    """The least KL within `page_bytes` of all layers, or the fewest bytes within `kl`. Raises CapacityError."""
    plans = front(layers)
    if page_bytes is not None:
        fitting = [plan for plan in plans if plan.page_bytes <= page_bytes]
        if not fitting:
            raise CapacityError(
                f"no plan fits: the smallest takes {plans[0].page_bytes} bytes a page of all layers and the budget is "
                f"{page_bytes:.0f}", hint="allow more, or a shorter context or fewer sequences",
            )  # fmt: skip
        return fitting[-1]
    assert kl is not None, "a budget of bytes or of KL"
    good = [plan for plan in plans if plan.kl <= kl]
    if not good:
        raise CapacityError(
            f"no plan is that good: the best predicted KL is {plans[-1].kl:.3g} and the budget is {kl:.3g}",
            hint="allow more, or calibrate with --schemes that have more bits",
        )
    return good[0]
