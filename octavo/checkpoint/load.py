"""Where a model runs, what it computes in, and its weights brought there."""

import os
from collections.abc import Callable

import torch
from torch import Tensor

from octavo.base import device as hardware
from octavo.base.errors import CheckpointError, UsageError
from octavo.checkpoint.source import Source

__all__ = ["resolve_device", "resolve_dtype", "weight_loader"]


def resolve_device(requested: str) -> str:
    """`auto`, `cpu` or `cuda[:N]` -> a device that is there. Raises UsageError."""
    if requested == "auto":
        requested = hardware.default_device()
    if requested.split(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"unknown device: `{requested}` (have auto, cpu, cuda)")
    if requested.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("device `cuda` was asked for and torch sees none", hint="use --device cpu")
    if requested.startswith("cuda") and not torch.cuda.is_initialized():
        _let_segments_grow()
    return requested


def _let_segments_grow() -> None:
    """Have torch's allocator map memory page by page. Loading joins many matrices, and what that frees lies between
    weights that stay: with fixed segments a 7B model kept 480 MiB that nobody could use (H200, torch 2.11)."""
    if "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def resolve_dtype(requested: str, device: str) -> torch.dtype:
    """`auto` is bfloat16 where the device computes in it natively, else float32."""
    if requested == "auto":
        return torch.bfloat16 if device != "cpu" or hardware.cpu_has_bf16() else torch.float32
    return getattr(torch, requested)


def weight_loader(source: Source, dtype: torch.dtype, device: str) -> Callable[[str], Tensor]:
    """Canonical weight name -> the tensor on the device, in `dtype`. Raises CheckpointError."""

    def load(name: str) -> Tensor:
        tensor = source.load_on(name, device)
        if not tensor.is_floating_point():
            raise CheckpointError(f"{source.path}: tensor `{name}` holds {tensor.dtype}, not floats")
        return tensor.to(dtype).contiguous()

    return load
