"""Which implementation of the kernels runs: decided once, at start, said aloud."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from octavo.base.errors import UsageError
from octavo.base.table import Table
from octavo.kv.layout import PAGE_TOKENS
from octavo.kv.plan import KVPlan

__all__ = ["IMPLS", "KernelChoice", "choose"]

_GRAPHED = {"triton"}


@dataclass(frozen=True)
class KernelChoice:
    """The chosen implementation and, if it is not the fast one of the device, why."""

    impl: str
    reason: str | None = None

    @property
    def graphs(self) -> bool:
        """Whether its launches can be recorded: none depends on what the host reads from the device."""
        return self.impl in _GRAPHED


def choose(requested: str, device: str, plan: KVPlan, page_tokens: int = PAGE_TOKENS) -> KernelChoice:
    """Resolve `auto` for a device and a plan. Asking for an impl by name and not getting it raises UsageError."""
    if requested == "auto":
        fast = "cpu" if device == "cpu" else "triton"
        missing = IMPLS[fast](device, plan, page_tokens)
        return KernelChoice(fast) if missing is None else KernelChoice("reference", missing)
    impl = IMPLS.resolve(requested)
    missing = IMPLS[impl](device, plan, page_tokens)
    if missing is not None:
        raise UsageError(f"kernels `{impl}` were asked for, but {missing}", hint="use --kernels auto or reference")
    return KernelChoice(impl)


def _lacking(plan: KVPlan, codec: str) -> str | None:
    sides = {side.scheme for layer in plan.layers for side in (layer.key, layer.value)}
    names = sorted(scheme.name for scheme in sides if getattr(scheme, f"{codec}_codec") is None)
    return f"the scheme {', '.join(names)} has no {codec} codec" if names else None


def _why_not_cpu(device: str, plan: KVPlan, page_tokens: int) -> str | None:
    if device != "cpu":
        return f"the Numba kernels run on cpu and the device is {device}"
    return _lacking(plan, "row")


def _why_not_triton(device: str, plan: KVPlan, page_tokens: int) -> str | None:
    if device == "cpu":
        return "the Triton kernels run on a GPU and the device is cpu"
    if find_spec("triton") is None:
        return "triton is not installed"
    if page_tokens % PAGE_TOKENS:
        return f"the Triton kernels read {PAGE_TOKENS} tokens at a time and pages have {page_tokens}"
    return _lacking(plan, "tile") or _too_old(device, plan)


def _too_old(device: str, plan: KVPlan) -> str | None:
    import torch

    if not torch.cuda.is_available():
        return None  # a machine that plans for another: what it has is not known here
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"the Triton kernels need compute capability 8.0 and the device has {capability[0]}.{capability[1]}"
    from octavo.kv.tile_codec import tiles_of  # Triton loads only where it is used

    codecs = {tiles_of(side.scheme) for layer in plan.layers for side in (layer.key, layer.value)}
    return next(filter(None, (codec.why_not(capability) for codec in codecs)), None)


IMPLS: Table[Callable[[str, KVPlan, int], str | None]] = Table(
    "kernel impl",
    {"cpu": _why_not_cpu, "triton": _why_not_triton, "reference": lambda device, plan, page_tokens: None},
)
"""name -> why it cannot run (device, plan, tokens of a page), or None if it can"""
