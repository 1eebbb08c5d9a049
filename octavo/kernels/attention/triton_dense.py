"""Attention of long chunks of prompts: their pages are decoded once, and a dense flash kernel reads the result.

A paged kernel decodes a page again for every block of queries that reads it. With hundreds of queries a sequence that
costs more than the attention itself; then it pays to decode each page once, to the model's own 16-bit type, for a dense
kernel: `choose_flash` says which. Pages of that very type are read as they lie (triton_flash_pages.py).

The codes, their scales and the transforms are the same ones that every other kernel reads: the results differ by the
rounding of q, K, V and the weights to that type.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.ahead import launch, runs_gluon
from octavo.kernels.attention import DENSE_TOKENS
from octavo.kernels.attention.triton_flash import FlashCut, flash
from octavo.kernels.attention.triton_flash_pages import flash_pages, reads_pages
from octavo.kernels.attention.triton_kernel import hadamard_rows
from octavo.kernels.rows import Rows, ScoreCorrection
from octavo.kv.pool import LayerPages
from octavo.kv.tile_codec import tiles_of

__all__ = ["attend_dense", "choose_flash", "takes", "unpack"]

_LEAST_QUERIES = 64
_TILE = 16


def takes(q: Tensor, rows: Rows, layer: LayerPages, correction: ScoreCorrection | None) -> bool:
    """Whether the chunks of a step go this way."""
    chunks = rows.chunks
    return (
        chunks is not None and q.is_cuda and correction is None and not rows.invariant
        and rows.compute in (torch.bfloat16, torch.float16) and rows.max_query >= _LEAST_QUERIES
        and q.shape[2] % 8 == 0 and q.shape[2] <= 256
        and (chunks.context_tokens <= DENSE_TOKENS or reads_pages(rows, layer, choose_flash(q.device, q.shape[2])))
    )  # fmt: skip


def choose_flash(device: torch.device, head_dim: int) -> FlashCut | None:
    """Which kernel reads the decoded pages: ours, cut so, or torch's FlashAttention-2 (None). Measured on an H200 with
    heads of 128 (benchmarks/prefill_attention.py); elsewhere torch's is the one that is known."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0) or head_dim != 128:
        return None
    if runs_gluon(device):
        return FlashCut(64, 64, 4, 2, overlapped=True)
    return FlashCut(64, 64, 4, 3)


def attend_dense(
    q: Tensor, rows: Rows, layer: LayerPages, softmax_scale: float, window: int | None, out: Tensor,
    cut: FlashCut | None = None,
) -> Tensor:  # fmt: skip
    """Attention of the rows after the single ones: `rows.compute` `[tokens of the chunks, H, D]`, which is `out` where
    the kernel can write there (a tensor of that shape; of that type, or it is left alone). What the paged kernel
    undoes of V's transform is undone, and no more."""
    chunks, dtype = rows.chunks, rows.compute
    assert chunks is not None and dtype is not None, "nothing is known of the chunks"
    q, cut = q[len(q) - chunks.tokens :], cut or choose_flash(q.device, q.shape[2])
    if cut is not None and reads_pages(rows, layer, cut):
        out = out if out.dtype == dtype else torch.empty_like(q, dtype=dtype)
        flash_pages(q, rows, layer, out, softmax_scale, window, cut)
        return out
    keys, values = unpack(rows, layer, dtype)
    if cut is not None:
        out = out if out.dtype == dtype else torch.empty_like(q, dtype=dtype)
        flash(q, keys, values, out, chunks, rows.max_query, softmax_scale, window, cut)
        return out
    sides = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
    return torch.ops.aten._flash_attention_forward(
        q.to(dtype), keys, values, chunks.query_start, chunks.key_start, rows.max_query, rows.max_context, 0.0, True,
        False, scale=softmax_scale, **sides,
    )[0]  # fmt: skip


def unpack(rows: Rows, layer: LayerPages, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """K and V of the chunks' contexts, laid end to end: `dtype` `[context tokens, G, D]`. K as it is stored, in the
    basis of q; V rotated back where the paged kernel would do so."""
    chunks, layout, plan = rows.chunks, layer.layout, layer.plan
    assert chunks is not None, "nothing is known of the chunks"
    key, value, head_dim = tiles_of(plan.key.scheme), tiles_of(plan.value.scheme), layout.head_dim
    width = 1 << (head_dim - 1).bit_length()
    keys = torch.empty(chunks.context_tokens, layout.kv_heads, head_dim, dtype=dtype, device=layer.pages.device)
    values = torch.empty_like(keys)
    count = len(chunks.key_start) - 1
    at = [tuple([slot.offset for slot in slots] + [0, 0])[:3] for slots in (layout.key_slots, layout.value_slots)]
    turned = layer.value.rotated and layer.value.matrix is None and width == head_dim
    launch(
        unpack_kernel, (layout.kv_heads, -(-rows.max_context // layout.page_tokens), count), keys, values,
        chunks.key_start, rows.block_tables, layer.pages, rows.block_tables.stride(0), rows.singles,
        LOAD_KEYS=key.load_rows or key.load_values, LOAD_VALUES=value.load_rows or value.load_values, KEY_AT=at[0],
        VALUE_AT=at[1], KEY_AFFINE=key.affine, VALUE_AFFINE=value.affine, UNROTATE=turned,
        PAGE_BYTES=layout.page_bytes, HEAD_BYTES=layout.head_bytes, KV_HEADS=layout.kv_heads, HEAD=head_dim,
        WIDTH=width, TILE=_TILE, PAGE=layout.page_tokens, PLAIN=not layer.pages.is_cuda, num_warps=4,
    )  # fmt: skip
    return keys, values


@triton.jit
def _vectors(
    head, LOAD: tl.constexpr, AT: tl.constexpr, AFFINE: tl.constexpr, token, limit, HEAD: tl.constexpr,
    WIDTH: tl.constexpr, TILE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Rows [token, token + TILE) of a page: fp32 `[TILE, WIDTH]`, zero from `limit` on."""
    x = LOAD(head, AT[0], token, limit, HEAD, WIDTH, TILE, tl.float32, PLAIN)
    if AFFINE:
        row = tl.arange(0, TILE)
        scale = tl.load((head + AT[1]).to(tl.pointer_type(tl.float16)) + token + row, mask=row < limit, other=0.0)
        mid = tl.load((head + AT[2]).to(tl.pointer_type(tl.float16)) + token + row, mask=row < limit, other=0.0)
        x = x * scale.to(tl.float32)[:, None] + mid.to(tl.float32)[:, None]
    return x


@triton.jit(do_not_specialize=["table_stride", "first_sequence"])
def unpack_kernel(
    keys, values, key_start, tables, pages, table_stride, first_sequence,
    LOAD_KEYS: tl.constexpr, LOAD_VALUES: tl.constexpr, KEY_AT: tl.constexpr, VALUE_AT: tl.constexpr,
    KEY_AFFINE: tl.constexpr, VALUE_AFFINE: tl.constexpr, UNROTATE: tl.constexpr, PAGE_BYTES: tl.constexpr,
    HEAD_BYTES: tl.constexpr, KV_HEADS: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    PAGE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """keys and values `[context tokens, KV_HEADS, HEAD]`; grid (KV_HEADS, pages of the longest context, chunks)."""
    group, number, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin = tl.load(key_start + chunk)
    context = tl.load(key_start + chunk + 1) - begin
    if number * PAGE >= context:
        return
    page = tl.load(tables + (first_sequence + chunk).to(tl.int64) * table_stride + number)
    head = pages + group * HEAD_BYTES + page.to(tl.int64) * PAGE_BYTES
    row, dim = tl.arange(0, TILE)[:, None], tl.arange(0, WIDTH)[None, :]
    for part in tl.static_range(PAGE // TILE):
        token = part * TILE
        limit = context - number * PAGE - token
        at = ((begin + number * PAGE + token).to(tl.int64) + row) * (KV_HEADS * HEAD) + group * HEAD + dim
        real = (row < limit) & (dim < HEAD)
        x = _vectors(head, LOAD_KEYS, KEY_AT, KEY_AFFINE, token, limit, HEAD, WIDTH, TILE, PLAIN)
        tl.store(keys + at, x.to(keys.dtype.element_ty), mask=real)
        x = _vectors(head, LOAD_VALUES, VALUE_AT, VALUE_AFFINE, token, limit, HEAD, WIDTH, TILE, PLAIN)
        if UNROTATE:
            x = hadamard_rows(x, TILE, WIDTH)
        tl.store(values + at, x.to(values.dtype.element_ty), mask=real)
