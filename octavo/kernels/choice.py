"""Which implementation of the kernels runs: decided once, at start, said aloud."""

from dataclasses import dataclass

from octavo.base.errors import UsageError
from octavo.base.table import Table
from octavo.kv.plan import KVPlan

__all__ = ["IMPLS", "KernelChoice", "choose"]

IMPLS: Table[str] = Table(
    "kernel impl",
    {"cpu": "Numba, CPU", "reference": "torch, any device; defines correctness"},
)


@dataclass(frozen=True)
class KernelChoice:
    """The chosen implementation and, if it is not the fast one of the device, why."""

    impl: str
    reason: str | None = None


def choose(requested: str, device: str, plan: KVPlan) -> KernelChoice:
    """Resolve `auto` for a device and a plan. Asking for an impl by name and not getting it raises UsageError."""
    missing = _why_not_cpu(device, plan)
    if requested == "auto":
        return KernelChoice("cpu") if missing is None else KernelChoice("reference", missing)
    impl = IMPLS.resolve(requested)
    if impl == "cpu" and missing is not None:
        raise UsageError(f"kernels `cpu` were asked for, but {missing}", hint="use --kernels auto or reference")
    return KernelChoice(impl)


def _why_not_cpu(device: str, plan: KVPlan) -> str | None:
    if device != "cpu":
        return f"the Numba kernels run on cpu and the device is {device}"
    sides = {side.scheme for layer in plan.layers for side in (layer.key, layer.value)}
    lacking = sorted(scheme.name for scheme in sides if scheme.row_codec is None)
    if lacking:
        return f"the scheme {', '.join(lacking)} has no row codec"
    return None
