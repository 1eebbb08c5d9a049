"""Small arrays to the device and back without waiting for it.

A copy from or to pinned memory is queued like a kernel; the host goes on. Pinned blocks come from torch's host
allocator, which gives a block out again only when the copies that were queued with it are done.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["Readback", "to_device"]

_ALIGNMENT = 64  # bytes; kernels are compiled for pointers that are multiples of 16


def to_device(arrays: Sequence[np.ndarray], device: str) -> list[Tensor]:
    """The arrays as tensors on `device`, of the same shapes and types: one buffer, one copy, views of it."""
    begins, total = [], 0
    for array in arrays:
        begins.append(total)
        total += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    buffer = torch.empty(total, dtype=torch.uint8, pin_memory=device != "cpu")
    host = buffer.numpy()
    for begin, array in zip(begins, arrays, strict=True):
        host[begin : begin + array.nbytes].view(array.dtype)[:] = array.ravel()
    moved = buffer.to(device, non_blocking=True)
    return [
        moved[begin : begin + array.nbytes].view(_TYPES[array.dtype.name]).view(array.shape)
        for begin, array in zip(begins, arrays, strict=True)
    ]


_TYPES = {
    "int32": torch.int32, "int64": torch.int64, "float32": torch.float32, "float64": torch.float64,
}  # fmt: skip


class Readback:
    """Tensors on their way to the host. They may be looked at after `wait`."""

    def __init__(self, tensors: Sequence[Tensor]):
        self._tensors, self._done = list(tensors), None
        if any(tensor.is_cuda for tensor in tensors):
            self._tensors = [_pinned(tensor) for tensor in tensors]
            self._done = torch.cuda.Event()
            self._done.record()

    def wait(self) -> list[Tensor]:
        """Until what was queued before the copy is done, not what was queued after it."""
        if self._done is not None:
            self._done.synchronize()
        return self._tensors


def _pinned(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
