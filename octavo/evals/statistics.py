"""What two paired evaluations say, and how surely. Pure arithmetic.

Wilson (1927)       interval of one accuracy
Newcombe (1998)     interval of the difference of two accuracies on the same items, method 10: the Wilson intervals of
                    both, with the correlation of the two runs' answers
McNemar (1947)      exact form: of the items that only one run got right, was it a fair coin?
"""

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["bootstrap_mean", "bootstrap_ratio", "mcnemar", "needed_items", "paired_interval", "wilson"]

_Z = 1.959963984540054
"""two-sided 95 %"""
_ONE_SIDED, _POWER = 1.6448536269514722, 0.8416212335729143
"""one-sided 95 %, and 80 % power"""


def wilson(right: int, n: int, z: float = _Z) -> tuple[float, float]:
    """Score interval of `right` out of `n`."""
    share, square = right / n, z * z
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = z * math.sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_interval(both: int, only_a: int, only_b: int, neither: int, z: float = _Z) -> tuple[float, float]:
    """Of accuracy(b) - accuracy(a), from how many items both, only one, and neither got right (method 10)."""
    n = both + only_a + only_b + neither
    a, b = (both + only_a) / n, (both + only_b) / n
    low_a, high_a = wilson(both + only_a, n, z)
    low_b, high_b = wilson(both + only_b, n, z)
    sides = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    product = both * neither - only_a * only_b
    if product > 0:  # his correction for continuity
        product = max(product - n / 2, 0)
    phi = product / math.sqrt(sides) if sides else 0.0
    down = math.sqrt((b - low_b) ** 2 - 2 * phi * (b - low_b) * (high_a - a) + (high_a - a) ** 2)
    up = math.sqrt((high_b - b) ** 2 - 2 * phi * (high_b - b) * (a - low_a) + (a - low_a) ** 2)
    return b - a - down, b - a + up


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p of a split at least as uneven, were gains and losses as likely as each other."""
    n, few = gained + lost, min(gained, lost)
    if n == 0:
        return 1.0
    log_half = n * math.log(0.5)
    tail = sum(math.exp(_log_choose(n, k) + log_half) for k in range(few + 1))
    return min(1.0, 2 * tail)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def needed_items(discordant: float, margin: float) -> int:
    """Items for a paired test to show, one-sided at 95 % and with 80 % power, that a drop is below `margin` when there
    is none, if a share `discordant` of items is right in one run only: (z + z')^2 discordant / margin^2."""
    return math.ceil((_ONE_SIDED + _POWER) ** 2 * discordant / margin**2)


def bootstrap_mean(values: Sequence[float], draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean by resampling items (percentiles)."""
    return bootstrap_ratio(values, [1] * len(values), draws, seed)


def bootstrap_ratio(
    totals: Sequence[float], counts: Sequence[int], draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of sum(totals) / sum(counts), a mean over the parts of items, by resampling whole items: what is in
    one item is alike, and counting its parts as independent would make the interval too narrow."""
    above, below = np.asarray(totals, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    generator = np.random.default_rng(seed)
    picks = (generator.integers(0, len(above), len(above)) for _ in range(draws))
    low, high = np.quantile([above[pick].sum() / below[pick].sum() for pick in picks], [0.025, 0.975])
    return float(low), float(high)
