"""Launching the Triton attention kernel: every launch argument is worked out here."""

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from octavo.kernels.ahead import COUNTERS, counters, follows, launch, runs_gluon
from octavo.kernels.attention.tiling import LEAST_PAGES, Chip, StagedTiling, Tiling, choose_tiling, padded
from octavo.kernels.attention.triton_dense import attend_dense, takes
from octavo.kernels.attention.triton_kernel import attend_kernel
from octavo.kernels.rows import Rows, ScoreCorrection
from octavo.kv.pool import LayerPages
from octavo.kv.tile_codec import tiles_of

__all__ = ["attend"]

_LOG2_E = 1.4426950408889634
_INVARIANT_ROWS = 16
_STAGED_PAGE = 64
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class _Part:
    """Rows [first, first + count) of a step, of up to `max_query` new tokens each."""

    first: int
    count: int
    max_query: int


@cache
def _chip(device: torch.device) -> Chip:
    if device.type != "cuda":
        return Chip(processors=2, has_bulk_copy=False)
    properties = torch.cuda.get_device_properties(device)
    shared_kib = properties.shared_memory_per_multiprocessor >> 10
    return Chip(properties.multi_processor_count, properties.major >= 9, shared_kib)


def _compute(name: str) -> tl.dtype:
    # the interpreter multiplies bf16 operands by their raw bits
    return getattr(tl, "float32" if _INTERPRETED and name == "bfloat16" else name)


def _offsets(slots) -> tuple[int, int, int]:
    offsets = [slot.offset for slot in slots]
    return (*offsets, 0, 0)[:3]


def _correction(correction: ScoreCorrection | None, q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a, b, cos and sin, or what stands for them where nobody reads them."""
    if correction is None:
        return q, q, q, q
    return correction.a, correction.b, correction.rope.cos, correction.rope.sin


def _common_constants(layer: LayerPages, q: Tensor, tiling: Tiling, in_kernel: bool) -> dict[str, Any]:
    """What both kernels are compiled for, apart from windows and corrections."""
    layout = layer.layout
    key, value = tiles_of(layer.plan.key.scheme), tiles_of(layer.plan.value.scheme)
    return {
        "ARRANGE": value.arrange_weights,
        "KEY_DIMS": key.key_dims,
        "VALUE_DIMS": value.value_dims,
        "KEY_FACTOR": key.key_factor,
        "UNROTATE": in_kernel,
        "PAGE_BYTES": layout.page_bytes,
        "HEAD_BYTES": layout.head_bytes,
        "KV_HEADS": layout.kv_heads,
        "GROUP": q.shape[1] // layout.kv_heads,
        "HEAD": q.shape[2],
        "PAGE": layout.page_tokens,
        "STAGES": tiling.stages,
        "num_warps": tiling.warps,
    }


def _constants(layer: LayerPages, q: Tensor, tiling: Tiling) -> dict[str, Any]:
    layout, plan = layer.layout, layer.plan
    key, value = tiles_of(plan.key.scheme), tiles_of(plan.value.scheme)
    return {
        "LOAD_KEYS": key.load_keys,
        "LOAD_VALUES": value.load_values,
        "KEY_AT": _offsets(layout.key_slots),
        "VALUE_AT": _offsets(layout.value_slots),
        "KEY_COMPUTE": _compute(key.key_compute),
        "VALUE_COMPUTE": _compute(value.value_compute),
        "KEY_AFFINE": key.affine,
        "VALUE_AFFINE": value.affine,
        "WIDTH": padded(q.shape[2]),
        "ROWS": tiling.rows,
        "TILE": tiling.tile,
        "PLAIN": _INTERPRETED,
        "PREFETCH": tiling.prefetch and not _INTERPRETED,
        "FLIP": value.flipped,
        "SPLIT": tiling.splits > 1,
        "num_stages": tiling.stages,
    }


def _staged_constants(layer: LayerPages, q: Tensor, tiling: StagedTiling) -> dict[str, Any]:
    layout, plan = layer.layout, layer.plan
    key, value = tiles_of(plan.key.scheme), tiles_of(plan.value.scheme)
    item = 1 if key.key_compute == "int8" else 2
    key_row, value_row = layout.key_slots[0].row_bytes, layout.value_slots[0].row_bytes
    page_bytes = layout.page_tokens * (key_row + value_row + 4 * 2)  # scales and midpoints have room in any case
    return {
        "KEYS_OF": key.keys_of,
        "VALUES_OF": value.values_of,
        "KEY_AT": layout.key_slots[0].offset,
        "VALUE_AT": layout.value_slots[0].offset,
        "META_AT": layout.key_slots[1].offset if key.affine else None,
        "KEY_ROW": key_row // item,
        "VALUE_ROW": value_row // item,
        "COMPUTE": getattr(tl, key.key_compute),
        "LEAST": LEAST_PAGES,
        "SHARED": tiling.shares > 0,
        "PAD": tiling.padding(page_bytes, q.shape[2], _chip(q.device).shared_kib),
        **(follows(q.device) if tiling.early else {"EARLY": False}),
    }


def _stageable(q: Tensor, layer: LayerPages, correction: ScoreCorrection | None) -> bool:
    """Whether the kernel with staged pages runs, and knows these: both sides codes, or both in the same 16 bits."""
    key, value = tiles_of(layer.plan.key.scheme), tiles_of(layer.plan.value.scheme)
    codes = key.keys_of is not None and value.values_of is not None and key.affine == value.affine
    return (
        (codes or (key is value and key.sixteen_bits)) and correction is None and q.shape[2] in (64, 128)
        and layer.layout.page_tokens == _STAGED_PAGE and runs_gluon(q.device)
    )  # fmt: skip


def _tiling(q: Tensor, rows: Rows, part: _Part, layer: LayerPages, correction: ScoreCorrection | None) -> Tiling:
    layout, plan = layer.layout, layer.plan
    codecs = (tiles_of(plan.key.scheme), tiles_of(plan.value.scheme))
    if rows.invariant:  # as if for one short row over one page, which nobody shares
        return choose_tiling(codecs, _INVARIANT_ROWS, layout.head_bytes, 1, layout.kv_heads, 1, _chip(q.device))
    return choose_tiling(
        codecs, part.max_query * (q.shape[1] // layout.kv_heads), layout.head_bytes, part.count, layout.kv_heads,
        -(-rows.max_context // layout.page_tokens), _chip(q.device), _stageable(q, layer, correction),
    )  # fmt: skip


def _parts(rows: Rows) -> list[_Part]:
    """Rows of one token and chunks of prompts are cut differently: in one launch the first would take as long as if
    they were chunks."""
    count = len(rows.context)
    if rows.invariant or rows.max_query == 1 or not 0 < rows.singles < count:
        return [_Part(0, count, rows.max_query)]
    return [_Part(0, rows.singles, 1), _Part(rows.singles, count - rows.singles, rows.max_query)]


def attend(
    q: Tensor, rows: Rows, layer: LayerPages, softmax_scale: float, window: int | None,
    correction: ScoreCorrection | None, tiling: Tiling | None = None,
) -> Tensor:  # fmt: skip
    q = q.contiguous()
    in_kernel = layer.value.rotated and layer.value.matrix is None and padded(q.shape[2]) == q.shape[2]
    finished = in_kernel or not layer.value.changes  # nothing follows that wants more than the model's own type
    out = torch.empty_like(q, dtype=rows.compute if finished and rows.compute is not None else torch.float32)
    for part in _parts(rows):
        if part.max_query > 1 and takes(q, rows, layer, correction):
            space = out[len(q) - rows.chunks.tokens :]
            got = attend_dense(q, rows, layer, softmax_scale, window, space)
            if part.count == len(rows.context):
                return got if finished else layer.value.output(got)
            if got is not space:
                space.copy_(got)
            continue
        cut = tiling or _tiling(q, rows, part, layer, correction)
        _attend_part(q, out, rows, part, layer, softmax_scale, window, correction, cut, in_kernel)
    return out if finished else layer.value.output(out)


def _attend_part(
    q: Tensor, out: Tensor, rows: Rows, part: _Part, layer: LayerPages, softmax_scale: float, window: int | None,
    correction: ScoreCorrection | None, tiling: Tiling, in_kernel: bool,
) -> None:  # fmt: skip
    layout = layer.layout
    tokens, heads, head_dim = q.shape
    blocks = layout.kv_heads * -(-part.max_query * (heads // layout.kv_heads) // tiling.rows)
    if part.max_query == 1 and part.first == 0:
        tokens = part.count  # the others have no split to merge
    shares = tiling.shares if isinstance(tiling, StagedTiling) else 0
    parts = 2 * shares * blocks * tiling.rows if shares else tiling.splits * tokens * heads
    merges = shares > 0 or tiling.splits > 1
    last = part.first + part.count
    assert not merges or last * blocks <= COUNTERS, f"{last} x {blocks} to merge and {COUNTERS} counters"
    width = padded(head_dim)
    partial = torch.empty(parts * (width + 2) if merges else 1, dtype=torch.float32, device=q.device)
    stats = partial[parts * width :] if merges else partial
    common = (
        out, partial, stats, counters(q), rows.query_start, rows.context, rows.block_tables,
        layer.pages, softmax_scale * _LOG2_E, rows.block_tables.stride(0), window or 0, part.first,
    )  # fmt: skip
    constants = _common_constants(layer, q, tiling, in_kernel) | {"WINDOW": window is not None}
    if isinstance(tiling, StagedTiling):
        from octavo.kernels.attention.triton_staged import attend_staged_kernel

        launch(
            attend_staged_kernel, (blocks, shares or part.count), q, *common, part.count,
            **_staged_constants(layer, q, tiling), **constants,
        )  # fmt: skip
    else:
        launch(
            attend_kernel, (tiling.splits, blocks, part.count), q, *_correction(correction, q), *common, tokens * heads,
            PAIRS=0 if correction is None else correction.rope.cos.shape[1], **_constants(layer, q, tiling),
            **constants,
        )  # fmt: skip
