"""Bytes of a file into a tensor on a GPU, by several threads through pinned memory.

A plain copy reads a mapped file page by page and then waits while the driver copies what is not pinned once more, all
in one thread. Here each thread reads its piece and copies it on a stream of its own, while the others read.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from octavo.base.errors import CheckpointError

__all__ = ["read_tensor"]

_PIECE = 8 << 20
_THREADS = 8


def read_tensor(file: Path, begin: int, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """The tensor whose bytes begin at byte `begin` of the file. Raises CheckpointError if they cannot be read."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    target = tensor.view(-1).view(torch.uint8)
    ready = torch.cuda.Event() if tensor.is_cuda else None
    if ready is not None:
        ready.record()  # what used this memory before may still be at work on it

    def move(start: int) -> None:
        piece = target[start : start + _PIECE]
        staged = torch.empty(len(piece), dtype=torch.uint8, pin_memory=ready is not None)
        _fill(staged, opened.fileno(), begin + start, file)
        if ready is None:
            piece.copy_(staged)
            return
        stream = torch.cuda.Stream(device)
        stream.wait_event(ready)
        with torch.cuda.stream(stream):
            piece.copy_(staged, non_blocking=True)
        stream.synchronize()

    try:
        with file.open("rb") as opened, ThreadPoolExecutor(_THREADS) as threads:
            # tensors made in inference mode can only be written in it, and the mode is each thread's own
            for _ in threads.map(torch.inference_mode()(move), range(0, len(target), _PIECE)):
                pass
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}", hint="download the file again") from None
    return tensor


def _fill(staged: Tensor, descriptor: int, offset: int, file: Path) -> None:
    view, done = staged.numpy().data, 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            raise CheckpointError(f"{file}: ends at byte {offset + done}", hint="download the file again")
        done += count
