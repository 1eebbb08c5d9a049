"""Clip counters: how many of the numbers stored with a static scale lie at the end of its range. Nearly all of those
were beyond it; a text unlike the one that was calibrated on shows here first.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kv.layout import PlaneSlot
from octavo.kv.pool import LayerPages, PagePool

__all__ = ["ClipCount", "ClipMeter"]


@dataclass(frozen=True)
class ClipCount:
    """Of `numbers` that were looked at in the keys (`k`) or values (`v`) of one layer, `clipped` are at the end."""

    layer: int
    side: str
    numbers: int
    clipped: int

    @property
    def share(self) -> float:
        return self.clipped / max(self.numbers, 1)


class ClipMeter:
    """Reads back what was just stored: every prompt token, and one decode step of `every`."""

    def __init__(self, pool: PagePool, every: int = 16):
        self.every, self._steps, self._vectors = every, 0, 0
        self._sides = [
            (number, name, layer, slots, peak)
            for number, layer in enumerate(pool.layers)
            for name, side, slots in (
                ("k", layer.plan.key, layer.layout.key_slots), ("v", layer.plan.value, layer.layout.value_slots),
            )
            if "static" in side.fitted and (peak := side.scheme.peak) is not None
        ]  # fmt: skip
        self._counts = torch.zeros(len(self._sides), dtype=torch.int64, device=pool.layers[0].pages.device)

    @property
    def needed(self) -> bool:
        """Whether any side has a static scale."""
        return bool(self._sides)

    def watch(self, slots: Tensor, prompt: bool) -> None:
        """`slots` int64 `[T]` of the tokens that a step stored (rows.py). No waiting for the device."""
        self._steps += 1
        if not prompt and self._steps % self.every:
            return
        self._vectors += len(slots)
        found = [_at_the_end(layer, planes, slots, peak, name) for _, name, layer, planes, peak in self._sides]
        self._counts += torch.stack(found)

    def report(self) -> list[ClipCount]:
        """One entry per layer and side with a static scale; waits for the device."""
        counts = self._counts.tolist()
        return [
            ClipCount(number, name, self._vectors * layer.layout.kv_heads * layer.layout.head_dim, count)
            for (number, name, layer, _, _), count in zip(self._sides, counts, strict=True)
        ]


def _at_the_end(layer: LayerPages, planes: tuple[PlaneSlot, ...], slots: Tensor, peak: float, name: str) -> Tensor:
    page, offset = slots // layer.layout.page_tokens, slots % layer.layout.page_tokens
    scheme = (layer.plan.key if name == "k" else layer.plan.value).scheme
    stored = scheme.decode(tuple(layer.plane(plane)[page, :, offset] for plane in planes))
    return (stored.abs() >= peak).sum()
