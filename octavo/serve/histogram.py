"""What is measured often and asked for rarely: a histogram of plain lists, medians and rates of the recent past.

One thread writes. Another may read at any time: it can miss the newest value, no more.
"""

import statistics
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate

__all__ = ["Histogram", "Rates", "Recent"]


class Histogram:
    """Counts by upper bound, as Prometheus keeps them."""

    def __init__(self, bounds: Sequence[float]):
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count `value` so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Pairs of upper bound and how many values lie at or below it, the last bound `+Inf`."""
        names = [*(repr(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


class Recent:
    """The newest values, of at most `seconds` ago and at most `count`."""

    def __init__(self, seconds: float, count: int, clock: Callable[[], float] = time.monotonic):
        self.seconds = seconds
        self.clock = clock
        self.values: deque[tuple[float, float]] = deque(maxlen=count)

    def add(self, value: float) -> None:
        self.values.append((self.clock(), value))

    def median(self) -> float | None:
        """None where nothing is that new."""
        oldest = self.clock() - self.seconds
        return statistics.median(new) if (new := [value for at, value in list(self.values) if at >= oldest]) else None


class Rates:
    """Mean growth per second of two totals over the last `seconds`. Kept are the newest totals, and older
    ones about `apart` seconds apart."""

    def __init__(self, seconds: float = 5.0, apart: float = 0.1, clock: Callable[[], float] = time.monotonic):
        self.seconds, self.apart, self.clock = seconds, apart, clock
        self.kept: deque[tuple[float, int, int]] = deque(maxlen=2 * int(seconds / apart) + 4)
        self.kept.append((clock(), 0, 0))

    def add(self, first: int, second: int) -> None:
        """The totals are this now."""
        now, kept = self.clock(), self.kept
        if len(kept) > 1 and now - kept[-2][0] < self.apart:
            kept.pop()
        kept.append((now, first, second))

    def per_second(self, first: int, second: int) -> tuple[float, float]:
        """Growth a second up to now, where the totals are `first` and `second`."""
        now, kept = self.clock(), list(self.kept)
        # totals are steps: what was true at the window's start is what was kept last before it
        before = [one for one in kept if one[0] <= now - self.seconds]
        at, first_then, second_then = before[-1] if before else kept[0]
        span = self.seconds if before else max(now - at, self.apart)
        return (first - first_then) / span, (second - second_then) / span
