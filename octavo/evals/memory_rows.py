"""What `octavo memory` measures: rows of a cache and a batch size, and a probe that holds them. No torch."""

from dataclasses import dataclass

from octavo.kv.plan import KVPlan
from octavo.models.spec import ModelSpec

__all__ = ["MemoryRow", "Probe", "SkippedRow"]


@dataclass(frozen=True)
class MemoryRow:
    """One cache, filled. `process_mib` is what backs the process in host memory, `device_mib` what is taken on the GPU
    as its driver says (by whom it may be), `kv_mib` the tensors of the pool."""

    batch: int
    dtype: str
    process_mib: float
    device_mib: float | None
    kv_mib: float
    pages: int
    seconds: float

    @property
    def total_mib(self) -> float:
        """What the law is about: the memory that weights and cache lie in."""
        return self.process_mib if self.device_mib is None else self.device_mib


@dataclass(frozen=True)
class SkippedRow:
    """A cache that was not tried, as it does not fit."""

    batch: int
    dtype: str
    needed_mib: float
    free_mib: float


@dataclass(frozen=True)
class Probe:
    """What was measured, and what the arithmetic needs beside it."""

    name: str
    spec: ModelSpec
    dtype: str
    device: str
    tokens: int
    fill: str
    kernels: dict[str, str]
    plans: dict[str, KVPlan]
    rows: tuple[MemoryRow, ...]
    skipped: tuple[SkippedRow, ...]
    runtime_mib: dict[str, float]
    """by cache: interpreter, libraries, kernels and workspace, measured with one layer in the place of all"""
    resident_mib: dict[str, float]
    """by cache and by arithmetic: weights, rotary tables, transforms"""
