"""Store, as defined: torch operations on any device."""

import torch
from torch import Tensor

from octavo.kernels.rows import Rope, Rows
from octavo.kv.pool import LayerPages

__all__ = ["apply_rope", "store"]


def apply_rope(vectors: Tensor, rope: Rope, positions: Tensor) -> Tensor:
    """`[T, N, D]` at `positions` `[T]` -> the same, rotated by position, fp32."""
    vectors = vectors.float()
    cos, sin = rope.cos[positions].unsqueeze(1), rope.sin[positions].unsqueeze(1)
    half = cos.shape[-1]
    first, second, rest = vectors[..., :half], vectors[..., half : 2 * half], vectors[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def store(q: Tensor, k: Tensor, v: Tensor, rope: Rope | None, rows: Rows, layer: LayerPages) -> Tensor:
    if rope is not None:
        q, k = apply_rope(q, rope, rows.positions), apply_rope(k, rope, rows.positions)
    q, k, v = layer.key.query(q), layer.key.stored(k), layer.value.stored(v)
    kept = rows.slots >= 0
    page, offset = rows.slots[kept] // layer.layout.page_tokens, rows.slots[kept] % layer.layout.page_tokens
    for scheme, vectors, slots in (
        (layer.plan.key.scheme, k, layer.layout.key_slots),
        (layer.plan.value.scheme, v, layer.layout.value_slots),
    ):
        for slot, encoded in zip(slots, scheme.encode(vectors[kept]), strict=True):
            layer.plane(slot)[page, :, offset] = encoded
    return q
