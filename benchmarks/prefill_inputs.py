"""Chunks of prompts over keys and values that lie end to end, and every way of attending to them: see
prefill_attention.py."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from octavo.kernels.attention.triton_flash import FlashCut, flash
from octavo.kernels.rows import Chunks

__all__ = ["HEAD_DIM", "Inputs", "Shape"]

HEAD_DIM = 128


@dataclass(frozen=True)
class Shape:
    """Chunks of `new` tokens, each the end of a context."""

    name: str
    kv_heads: int
    group: int
    chunks: tuple[tuple[int, int], ...]
    window: int | None = None

    def operations(self) -> int:
        pairs = sum(new * (context - new) + new * (new + 1) // 2 for new, context in self.chunks)
        return 4 * HEAD_DIM * self.kv_heads * self.group * pairs


@dataclass(frozen=True)
class Inputs:
    shape: Shape
    q: Tensor
    keys: Tensor
    values: Tensor
    chunks: Chunks

    @classmethod
    def of(cls, shape: Shape) -> "Inputs":
        torch.manual_seed(1)
        news, contexts = [new for new, _ in shape.chunks], [context for _, context in shape.chunks]
        q = torch.randn(sum(news), shape.kv_heads * shape.group, HEAD_DIM, device="cuda")
        keys, values = (
            torch.randn(sum(contexts), shape.kv_heads, HEAD_DIM, device="cuda").to(torch.bfloat16) for _ in range(2)
        )
        return cls(shape, q, keys, values, Chunks.of(news, contexts, "cuda"))

    @property
    def longest(self) -> tuple[int, int]:
        return max(new for new, _ in self.shape.chunks), max(context for _, context in self.shape.chunks)

    def ours(self, cut: FlashCut, q: Tensor | None = None) -> Callable[[], Tensor]:
        out = torch.full_like(self.q, float("nan"), dtype=torch.bfloat16)
        source = self.q if q is None else q

        def run() -> Tensor:
            flash(
                source, self.keys, self.values, out, self.chunks, self.longest[0], HEAD_DIM**-0.5, self.shape.window,
                cut,
            )  # fmt: skip
            return out

        return run

    def flash_attention_2(self) -> Callable[[], Tensor]:
        q, window = self.q.to(torch.bfloat16), self.shape.window
        sides = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
        return lambda: torch.ops.aten._flash_attention_forward(
            q, self.keys, self.values, self.chunks.query_start, self.chunks.key_start, *self.longest, 0.0, True, False,
            scale=HEAD_DIM**-0.5, **sides,
        )[0]  # fmt: skip

    def cudnn(self) -> Callable[[], Tensor] | None:
        new, context = self.longest
        if any(chunk != (context, context) for chunk in self.shape.chunks) or new != context:
            return None
        sides = (self.q.to(torch.bfloat16), self.keys, self.values)
        q, k, v = (side.unflatten(0, (-1, new)).transpose(1, 2) for side in sides)
        k, v = (side.repeat_interleave(self.shape.group, 1) if self.shape.group > 1 else side for side in (k, v))
        return lambda: torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, False, 0.0, True, False, scale=HEAD_DIM**-0.5
        )[0]

    def exact(self) -> Tensor:
        """In fp32, of q rounded as the kernels round it."""
        out, at, begin = [], 0, 0
        for new, context in self.shape.chunks:
            q = self.q[begin : begin + new].to(torch.bfloat16).float().transpose(0, 1)
            k, v = (
                side[at : at + context].float().repeat_interleave(self.shape.group, 1).transpose(0, 1)
                for side in (self.keys, self.values)
            )
            position = torch.arange(context - new, context, device="cuda")[:, None]
            key = torch.arange(context, device="cuda")[None, :]
            hidden = key > position
            if self.shape.window is not None:
                hidden |= key <= position - self.shape.window
            weights = (q @ k.mT * HEAD_DIM**-0.5).masked_fill(hidden, float("-inf")).softmax(-1)
            out.append((weights @ v).transpose(0, 1))
            at, begin = at + context, begin + new
        return torch.cat(out)
