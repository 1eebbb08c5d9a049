"""How one page of one layer is laid out in bytes. Pure arithmetic: no torch.

A page holds `page_tokens` tokens of one layer, all its KV heads. Per head, planes rather than interleaved rows:

    head 0: K data | V data | K scale | K mid | V scale | V mid      each plane [token, items], row-major
    head 1: ...                                                      each plane starts on a multiple of 128 bytes
                                                                     where it is 128 bytes or longer
"""

from dataclasses import dataclass
from functools import cached_property

from octavo.kv.scheme import Plane, Scheme

__all__ = ["PAGE_TOKENS", "PageLayout", "PlaneSlot"]

PAGE_TOKENS = 64
_ALIGN = 128


def _aligned(count: int, to: int) -> int:
    return -(-count // to) * to


@dataclass(frozen=True)
class PlaneSlot:
    """Where a plane lies inside one head's block: row t of it starts at `offset + t * row_bytes`."""

    plane: Plane
    offset: int
    row_bytes: int


@dataclass(frozen=True)
class PageLayout:
    """Offsets of every plane of a page for a K scheme, a V scheme and a head geometry."""

    key: Scheme
    value: Scheme
    kv_heads: int
    head_dim: int
    page_tokens: int = PAGE_TOKENS

    @cached_property
    def _slots(self) -> tuple[tuple[PlaneSlot, ...], tuple[PlaneSlot, ...], int]:
        # [K data, V data, K metadata..., V metadata...], as drawn above
        order = [(0, self.key.planes[0]), (1, self.value.planes[0])]
        order += [(0, plane) for plane in self.key.planes[1:]] + [(1, plane) for plane in self.value.planes[1:]]
        sides: tuple[list[PlaneSlot], list[PlaneSlot]] = ([], [])
        end = 0
        for side, plane in order:
            row_bytes = plane.row_bytes(self.head_dim)
            plane_bytes = self.page_tokens * row_bytes
            offset = _aligned(end, _ALIGN if plane_bytes >= _ALIGN else 16)
            sides[side].append(PlaneSlot(plane, offset, row_bytes))
            end = offset + plane_bytes
        return tuple(sides[0]), tuple(sides[1]), _aligned(end, _ALIGN)

    @property
    def key_slots(self) -> tuple[PlaneSlot, ...]:
        return self._slots[0]

    @property
    def value_slots(self) -> tuple[PlaneSlot, ...]:
        return self._slots[1]

    @property
    def head_bytes(self) -> int:
        """Bytes of one KV head's block; head h starts at `h * head_bytes` in its page."""
        return self._slots[2]

    @property
    def page_bytes(self) -> int:
        return self.kv_heads * self.head_bytes
