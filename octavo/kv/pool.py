"""The tensors of the cache: one byte tensor `[num_pages, page_bytes]` per layer, allocated once, nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kv.layout import PageLayout, PlaneSlot
from octavo.kv.plan import KVPlan, LayerPlan
from octavo.kv.transform import PLAIN, ROTATION, SideTransform

__all__ = ["LayerPages", "PagePool", "unfitted"]

_DTYPES = {
    "uint8": torch.uint8,
    "int8": torch.int8,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


@dataclass(frozen=True)
class LayerPages:
    """One layer's pages, how their bytes are laid out, and how its K and V are transformed and encoded."""

    pages: Tensor
    """uint8 `[num_pages, page_bytes]`, contiguous"""
    layout: PageLayout
    plan: LayerPlan
    key: SideTransform
    value: SideTransform

    def plane(self, slot: PlaneSlot) -> Tensor:
        """A typed view without a copy, `[num_pages, kv_heads, page_tokens, items]`."""
        dtype = _DTYPES[slot.plane.dtype]
        item = dtype.itemsize
        layout = self.layout
        shape = (self.pages.shape[0], layout.kv_heads, layout.page_tokens, slot.row_bytes // item)
        strides = (layout.page_bytes // item, layout.head_bytes // item, slot.row_bytes // item, 1)
        return self.pages.view(dtype).as_strided(shape, strides, slot.offset // item)


class PagePool:
    """Every layer's pages. Page ids are shared by all layers, so layers may differ in scheme.

    Fresh pages hold whatever is there (on a CPU the system backs them with memory when they are first written);
    nothing reads them before it wrote them. `fill` is a byte to put there instead: tests use 0xFF, which is NaN in
    every float plane, to catch reads of what nobody wrote.
    """

    def __init__(
        self, plan: KVPlan, layouts: Sequence[PageLayout], num_pages: int, device: str, fill: int | None = None,
        transforms: Sequence[tuple[SideTransform, SideTransform]] | None = None,
    ):  # fmt: skip
        """`transforms`: per layer those of K and V, where the plan has fitted ones."""
        self.plan = plan
        self.layouts = tuple(layouts)
        self.num_pages = num_pages
        if transforms is None:
            transforms = [unfitted(layer) for layer in plan.layers]
        self.layers = tuple(
            LayerPages(_pages(num_pages, layout, device, fill), layout, layer, *pair)
            for layout, layer, pair in zip(self.layouts, plan.layers, transforms, strict=True)
        )

    @property
    def allocated_bytes(self) -> int:
        """Bytes really allocated, asked of the tensors themselves."""
        return sum(layer.pages.untyped_storage().nbytes() for layer in self.layers)


def unfitted(layer: LayerPlan) -> tuple[SideTransform, SideTransform]:
    """The transforms of a layer whose plan needs no numbers: the rotation, or nothing."""
    for side in (layer.key, layer.value):
        assert not side.fitted, f"{side} needs the numbers of {', '.join(side.fitted)}"
    key, value = (ROTATION if side.rotated else PLAIN for side in (layer.key, layer.value))
    return key, value


def _pages(num_pages: int, layout: PageLayout, device: str, fill: int | None) -> Tensor:
    pages = torch.empty((num_pages, layout.page_bytes), dtype=torch.uint8, device=device)
    return pages if fill is None else pages.fill_(fill)
