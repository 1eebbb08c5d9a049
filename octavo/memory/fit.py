"""Straight lines through measured totals: what is fixed, what each sequence adds, where two lines cross. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.base.errors import BadValue

__all__ = ["Line", "crossing", "fit_line"]


@dataclass(frozen=True)
class Line:
    """`intercept + slope * batch`; any unit, the same for both."""

    intercept: float
    slope: float
    max_residual: float = 0.0
    """how far the farthest point lies from the line"""

    def at(self, batch: float) -> float:
        return self.intercept + self.slope * batch

    def shifted(self, by: float) -> "Line":
        """The line with `by` added to what is fixed."""
        return Line(self.intercept + by, self.slope, self.max_residual)


def fit_line(points: Sequence[tuple[float, float]]) -> Line:
    """Ordinary least squares over `(batch, total)`. Raises BadValue with fewer than two different batch sizes."""
    if len({batch for batch, _ in points}) < 2:
        raise BadValue(f"a line needs two batch sizes, not {len({batch for batch, _ in points})}")
    mean_batch = sum(batch for batch, _ in points) / len(points)
    mean_total = sum(total for _, total in points) / len(points)
    spread = sum((batch - mean_batch) ** 2 for batch, _ in points)
    slope = sum((batch - mean_batch) * (total - mean_total) for batch, total in points) / spread
    intercept = mean_total - slope * mean_batch
    return Line(intercept, slope, max(abs(total - intercept - slope * batch) for batch, total in points))


def crossing(first: Line, second: Line) -> float | None:
    """The batch at which both cost the same, or None: parallel, or only below an empty batch."""
    if first.slope == second.slope:
        return None
    batch = (second.intercept - first.intercept) / (first.slope - second.slope)
    return batch if batch >= 0 else None
