"""The flash kernel for Hopper over pages as they lie. Rows of the model's own 16 bits need no decoding: each page is a
tile, and nothing is copied or laid end to end, however long the contexts are."""

import torch
from torch import Tensor

from octavo.kernels.ahead import launch
from octavo.kernels.attention.triton_flash import FlashCut, arguments
from octavo.kernels.rows import Rows
from octavo.kv.pool import LayerPages
from octavo.kv.tile_codec import tiles_of

__all__ = ["flash_pages", "reads_pages"]

_KINDS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def reads_pages(rows: Rows, layer: LayerPages, cut: FlashCut | None) -> bool:
    """Whether a kernel cut so can take the layer's pages for its tiles: rows as the model computes, in pages of a
    tile's length, and no transform of values that it would have to undo."""
    layout, key, value = layer.layout, tiles_of(layer.plan.key.scheme), tiles_of(layer.plan.value.scheme)
    if cut is None or not cut.overlapped or cut.keys != layout.page_tokens or key is not value:
        return False
    row_bytes = layout.head_dim * 2
    whole = [layout.page_bytes, layout.head_bytes, layout.key_slots[0].offset, layout.value_slots[0].offset]
    return (
        key.sixteen_bits and _KINDS[key.key_compute] == rows.compute and not layer.value.changes
        and all(size % row_bytes == 0 for size in whole)
    )  # fmt: skip


def flash_pages(
    q: Tensor, rows: Rows, layer: LayerPages, out: Tensor, softmax_scale: float, window: int | None, cut: FlashCut
) -> None:
    """Attention of the chunks into `out` `[chunks.tokens, H, D]` of `rows.compute`; q fp32, alike."""
    from octavo.kernels.attention.triton_flash_hopper import hopper_flash_kernel, hopper_tiles

    chunks, layout, width = rows.chunks, layer.layout, layer.layout.head_dim
    assert chunks is not None, "nothing is known of the chunks"
    matrix = layer.pages.view(out.dtype).view(-1, width)
    key_row, value_row = (slots[0].offset // (2 * width) for slots in (layout.key_slots, layout.value_slots))
    tiles = hopper_tiles(matrix[key_row:], cut.keys, width)
    grid, laid, constants = arguments(out, chunks, rows.max_query, layout.kv_heads, softmax_scale, window, cut)
    launch(
        hopper_flash_kernel, grid, q, tiles, tiles, *laid, rows.block_tables, rows.block_tables.stride(0), rows.singles,
        PAGE_ROWS=layout.page_bytes // (2 * width), HEAD_ROWS=layout.head_bytes // (2 * width),
        VALUE_ROW=value_row - key_row, **constants,
    )  # fmt: skip
