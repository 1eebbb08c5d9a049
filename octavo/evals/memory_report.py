"""The answer of `octavo memory`: measured totals, the line through them beside the one foretold, where lines cross."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from octavo.evals.memory_rows import Probe
from octavo.memory.fit import Line, crossing, fit_line
from octavo.memory.law import int4_weight_bytes, memory_law, weight_bytes

__all__ = ["ChartLine", "Crossing", "FoundLaw", "MemoryProof", "prove"]

_MIB = 2**20


@dataclass(frozen=True)
class FoundLaw:
    """Least squares through the totals of one cache, and what arithmetic said before: MiB, and MiB for each sequence.
    `runtime_mib`: the part of the predicted intercept that was measured, with one layer in the place of all."""

    intercept_mib: float
    slope_mib: float
    max_residual_mib: float
    predicted_intercept_mib: float
    predicted_slope_mib: float
    runtime_mib: float

    @property
    def line(self) -> Line:
        return Line(self.intercept_mib, self.slope_mib)


@dataclass(frozen=True)
class ChartLine:
    """`measured`: fitted to rows; else a measured line moved by what other weights would take, by arithmetic."""

    intercept_mib: float
    slope_mib: float
    measured: bool


@dataclass(frozen=True)
class Crossing:
    """The batch size at which two lines cost the same."""

    first: str
    second: str
    batch: float


@dataclass(frozen=True)
class MemoryProof:
    """A probe and what follows from it."""

    probe: Probe
    law: Mapping[str, FoundLaw]
    lines: Mapping[str, ChartLine]
    crossings: tuple[Crossing, ...]

    def as_dict(self) -> dict[str, Any]:
        probe = self.probe
        first = {row.batch: row.total_mib for row in probe.rows if row.dtype == next(iter(probe.plans))}
        rows = [
            asdict(row) | ({"difference_mib": row.total_mib - first[row.batch]} if row.batch in first else {})
            for row in probe.rows
        ]
        names = ("layers", "width", "mlp_width", "heads", "kv_heads", "head_dim", "vocab_size", "parameters")
        return {
            "model": probe.name, "shape": {name: getattr(probe.spec, name) for name in names},
            "dtype": probe.dtype, "device": probe.device, "tokens": probe.tokens, "fill": probe.fill,
            "kernels": probe.kernels, "weights_mib": weight_bytes(probe.spec, probe.dtype) / _MIB,
            "rows": rows, "skipped": [asdict(row) for row in probe.skipped],
            "law": {name: asdict(law) for name, law in self.law.items()},
            "lines": {name: asdict(line) for name, line in self.lines.items()},
            "crossings": [asdict(crossing) for crossing in self.crossings],
        }  # fmt: skip


def prove(probe: Probe) -> MemoryProof:
    """Fit a line to each cache that was measured at two batch sizes or more."""
    law = {cache: found for cache in probe.plans if (found := _law(probe, cache)) is not None}
    lines: dict[str, ChartLine] = {}
    saved = (weight_bytes(probe.spec, probe.dtype) - int4_weight_bytes(probe.spec, probe.dtype)) / _MIB
    for cache, found in law.items():
        lines[f"KV {cache}"] = ChartLine(found.intercept_mib, found.slope_mib, True)
    for cache, found in law.items():
        lines[f"weights int4, KV {cache}"] = ChartLine(found.intercept_mib - saved, found.slope_mib, False)
    return MemoryProof(probe, law, lines, tuple(_crossings(lines)))


def _law(probe: Probe, cache: str) -> FoundLaw | None:
    points = [(row.batch, row.total_mib) for row in probe.rows if row.dtype == cache]
    if len({batch for batch, _ in points}) < 2:
        return None
    line = fit_line(points)
    slope = memory_law(probe.spec, probe.plans[cache]).sequence_bytes(probe.tokens) / _MIB
    fixed = probe.runtime_mib[cache] + probe.resident_mib[cache]
    return FoundLaw(line.intercept, line.slope, line.max_residual, fixed, slope, probe.runtime_mib[cache])


def _crossings(lines: Mapping[str, ChartLine]) -> list[Crossing]:
    """Where folding the first cache's weights and folding the cache save the same: that line with each measured one."""
    measured = [name for name, line in lines.items() if line.measured]
    if not measured:
        return []
    folded = f"weights int4, {measured[0]}"
    found = []
    for name in measured[1:]:
        first, second = (Line(lines[one].intercept_mib, lines[one].slope_mib) for one in (folded, name))
        batch = crossing(first, second)
        if batch is not None:
            found.append(Crossing(folded, name, batch))
    return found
