"""Launching the Triton attention kernel: every launch argument is worked out here."""

import os
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from octavo.kernels.ahead import launch
from octavo.kernels.attention import ROW_BLOCKS
from octavo.kernels.attention.triton_dense import attend_dense, takes
from octavo.kernels.attention.triton_kernel import attend_kernel
from octavo.kernels.rows import Rows, ScoreCorrection
from octavo.kv.pool import LayerPages
from octavo.kv.tile_codec import TileCodec, tiles_of

__all__ = ["Chip", "Tiling", "attend", "choose_tiling"]

_LOG2_E = 1.4426950408889634
_COUNTERS = 1 << 20
_INVARIANT_ROWS = 16
_SMALL_BYTES = 10 << 10  # of a page's KV head
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Tiling:
    """How the work is cut: query rows a program, tokens a tile, programs that share a context, warps, load stages,
    and whether pages are prefetched to L2."""

    rows: int
    tile: int
    splits: int
    warps: int
    stages: int
    prefetch: bool = False


@dataclass(frozen=True)
class _Part:
    """Rows [first, first + count) of a step, of up to `max_query` new tokens each."""

    first: int
    count: int
    max_query: int


@dataclass(frozen=True)
class Chip:
    processors: int
    has_bulk_copy: bool


@cache
def _chip(device: torch.device) -> Chip:
    if device.type != "cuda":
        return Chip(processors=2, has_bulk_copy=False)
    properties = torch.cuda.get_device_properties(device)
    return Chip(properties.multi_processor_count, properties.major >= 9)


@cache
def _counters(device: torch.device, stream: int) -> Tensor:
    # every launch leaves them at zero; launches on one stream follow each other
    return torch.zeros(_COUNTERS, dtype=torch.int32, device=device)


def _pow2(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def choose_tiling(
    codecs: tuple[TileCodec, TileCodec], query_rows: int, head_bytes: int, sequences: int, kv_heads: int, pages: int,
    chip: Chip,
) -> Tiling:  # fmt: skip
    """`query_rows`: new tokens of the longest chunk times query heads per KV head; `pages`: of the longest context."""
    one_warp = any(codec.one_warp for codec in codecs)
    exact = any(codec.key_compute == "float32" for codec in codecs)
    rows = min(ROW_BLOCKS[-1], max(16 if exact else ROW_BLOCKS[0], _pow2(query_rows)))
    if rows == ROW_BLOCKS[-1]:
        return Tiling(rows, 32, 1, 4, 1 if one_warp or exact else 2)
    programs = sequences * kv_heads * -(-query_rows // rows)
    resident = (12 if rows == 8 else 8) if one_warp else 4  # programs a multiprocessor holds: measured, not derived
    small = head_bytes <= _SMALL_BYTES
    splits = _choose_splits(programs, pages, resident * chip.processors, small)
    if one_warp:
        # int4's few bytes leave memory idle between a program's loads
        return Tiling(rows, 64 if rows == 8 else 32, splits, 1, 1, prefetch=chip.has_bulk_copy and small)
    return Tiling(rows, 32 if exact else 64, splits, 2, 1 if exact else 2)


@lru_cache(4096)  # every layer of a step asks the same
def _choose_splits(programs: int, pages: int, slots: int, small: bool) -> int:
    """How many programs share a context; `slots` is how many programs the chip holds. Measured on an H200 over contexts
    of one length and of many (docs/kernels.md).

    With a full chip none should: every split has a start, an end and a share of the merging, and since the longest
    contexts are started first the short ones fill what they leave. With half a chip three keep a few long contexts from
    running alone. Below, fewest page times: a wave of programs costs its pages, but for what a chip that is not full
    does faster (down to 0.6, after a full wave to 0.8: then latency rules), and something for its start and end, which
    weighs more where pages are `small`.
    """
    if programs >= slots:
        return 1
    if 2 * programs >= slots:
        return max(1, min(3, pages))

    def page_times(splits: int) -> float:
        full, rest = divmod(programs * splits, slots)
        waves = full + (max(rest / slots, 0.8 if full else 0.6) if rest else 0)
        return waves * -(-pages // splits) + (1.0 if small else 0.3) * (full + (rest > 0))

    return min(range(1, max(1, min(pages, 64)) + 1), key=page_times)


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


def _constants(layer: LayerPages, q: Tensor, tiling: Tiling, in_kernel: bool) -> dict[str, Any]:
    """What a kernel is compiled for, apart from windows and corrections."""
    layout, plan = layer.layout, layer.plan
    key, value, head_dim = tiles_of(plan.key.scheme), tiles_of(plan.value.scheme), q.shape[2]
    return {
        "LOAD_KEYS": key.load_keys,
        "LOAD_VALUES": value.load_values,
        "ARRANGE": value.arrange_weights,
        "KEY_DIMS": key.key_dims,
        "VALUE_DIMS": value.value_dims,
        "KEY_AT": _offsets(layout.key_slots),
        "VALUE_AT": _offsets(layout.value_slots),
        "KEY_COMPUTE": _compute(key.key_compute),
        "VALUE_COMPUTE": _compute(value.value_compute),
        "KEY_AFFINE": key.affine,
        "VALUE_AFFINE": value.affine,
        "KEY_FACTOR": key.key_factor,
        "UNROTATE": in_kernel,
        "PAGE_BYTES": layout.page_bytes,
        "HEAD_BYTES": layout.head_bytes,
        "KV_HEADS": layout.kv_heads,
        "GROUP": q.shape[1] // layout.kv_heads,
        "HEAD": head_dim,
        "WIDTH": _pow2(head_dim),
        "ROWS": tiling.rows,
        "TILE": tiling.tile,
        "PAGE": layout.page_tokens,
        "SPLIT": tiling.splits > 1,
        "PLAIN": _INTERPRETED,
        "STAGES": tiling.stages,
        "PREFETCH": tiling.prefetch and not _INTERPRETED,
        "FLIP": value.flipped,
        "num_warps": tiling.warps,
        "num_stages": tiling.stages,
    }


def _tiling(q: Tensor, rows: Rows, part: _Part, layer: LayerPages) -> Tiling:
    layout, plan = layer.layout, layer.plan
    codecs = (tiles_of(plan.key.scheme), tiles_of(plan.value.scheme))
    if rows.invariant:  # as if for one short row over one page, which nobody shares
        return choose_tiling(codecs, _INVARIANT_ROWS, layout.head_bytes, 1, layout.kv_heads, 1, _chip(q.device))
    return choose_tiling(
        codecs, part.max_query * (q.shape[1] // layout.kv_heads), layout.head_bytes, part.count, layout.kv_heads,
        -(-rows.max_context // layout.page_tokens), _chip(q.device),
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
    in_kernel = layer.value.rotated and layer.value.matrix is None and _pow2(q.shape[2]) == q.shape[2]
    finished = in_kernel or not layer.value.changes  # nothing follows that wants more than the model's own type
    out = torch.empty_like(q, dtype=rows.compute if finished and rows.compute is not None else torch.float32)
    for part in _parts(rows):
        if part.max_query > 1 and takes(q, rows, correction):
            space = out[len(q) - rows.chunks.tokens :]
            got = attend_dense(q, rows, layer, softmax_scale, window, space)
            if part.count == len(rows.context):
                return got if finished else layer.value.output(got)
            if got is not space:
                space.copy_(got)
            continue
        cut = tiling or _tiling(q, rows, part, layer)
        _attend_part(q, out, rows, part, layer, softmax_scale, window, correction, cut, in_kernel)
    return out if finished else layer.value.output(out)


def _attend_part(
    q: Tensor, out: Tensor, rows: Rows, part: _Part, layer: LayerPages, softmax_scale: float, window: int | None,
    correction: ScoreCorrection | None, tiling: Tiling, in_kernel: bool,
) -> None:  # fmt: skip
    layout = layer.layout
    tokens, heads, head_dim = q.shape
    blocks, splits = -(-part.max_query * (heads // layout.kv_heads) // tiling.rows), tiling.splits
    row_blocks = part.count * layout.kv_heads * blocks
    assert splits == 1 or row_blocks <= _COUNTERS, f"{row_blocks} row blocks to merge and {_COUNTERS} counters"
    if part.max_query == 1 and part.first == 0:
        tokens = part.count  # the others have no split to merge
    share, width = splits * tokens * heads, _pow2(head_dim)
    partial = torch.empty(share * (width + 2) if splits > 1 else 1, dtype=torch.float32, device=q.device)
    stats = partial[share * width :] if splits > 1 else partial
    stream = torch.cuda.current_stream(q.device).cuda_stream if q.is_cuda else 0
    launch(
        attend_kernel, (splits, layout.kv_heads * blocks, part.count), q,
        *_correction(correction, q), out, partial, stats, _counters(q.device, stream), rows.query_start, rows.context,
        rows.block_tables, layer.pages, softmax_scale * _LOG2_E, rows.block_tables.stride(0), tokens * heads,
        window or 0, part.first, WINDOW=window is not None,
        PAIRS=0 if correction is None else correction.rope.cos.shape[1],
        **_constants(layer, q, tiling, in_kernel),
    )  # fmt: skip
