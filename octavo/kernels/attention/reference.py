"""Paged attention, as defined: decode every page of the row, then softmax(QK^T)V in fp32."""

import torch
from torch import Tensor

from octavo.kernels.rows import Rows, ScoreCorrection
from octavo.kv.layout import PlaneSlot
from octavo.kv.pool import LayerPages
from octavo.kv.scheme import Scheme

__all__ = ["attend", "read_side"]


def read_side(layer: LayerPages, scheme: Scheme, slots: tuple[PlaneSlot, ...], pages: Tensor, tokens: int) -> Tensor:
    """What `pages` `[n]` decode to: fp32 `[G, tokens, D]`."""
    planes = [layer.plane(slot)[pages] for slot in slots]  # each [n, G, P, items]
    rows = tuple(plane.transpose(0, 1).flatten(1, 2)[:, :tokens] for plane in planes)
    return scheme.decode(rows)


def attend(
    q: Tensor, rows: Rows, layer: LayerPages, softmax_scale: float, window: int | None,
    correction: ScoreCorrection | None,
) -> Tensor:  # fmt: skip
    out = torch.empty_like(q)
    layout, plan = layer.layout, layer.plan
    group = q.shape[1] // layout.kv_heads
    starts, contexts = rows.query_start.tolist(), rows.context.tolist()
    for row, context in enumerate(contexts):
        begin, end = starts[row], starts[row + 1]
        if begin == end:
            continue
        pages = rows.block_tables[row, : -(-context // layout.page_tokens)].long()
        keys = read_side(layer, plan.key.scheme, layout.key_slots, pages, context)
        values = read_side(layer, plan.value.scheme, layout.value_slots, pages, context)
        grouped = q[begin:end].unflatten(1, (layout.kv_heads, group)).permute(1, 2, 0, 3)  # [G, H/G, t, D]
        scores = (grouped @ keys.unsqueeze(1).mT) * softmax_scale  # [G, H/G, t, context]
        if correction is not None:
            scores = scores + _corrections(correction, begin, end, context, layout.kv_heads)
        position = torch.arange(context - (end - begin), context, device=q.device)
        key_position = torch.arange(context, device=q.device)
        hidden = key_position[None, :] > position[:, None]
        if window is not None:
            hidden |= key_position[None, :] <= position[:, None] - window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out[begin:end] = (weights @ values.unsqueeze(1)).permute(2, 0, 1, 3).flatten(1, 2)
    return layer.value.output(out)


def _corrections(correction: ScoreCorrection, begin: int, end: int, context: int, kv_heads: int) -> Tensor:
    """`[G, H/G, t, context]`."""
    cos, sin = correction.rope.cos[:context], correction.rope.sin[:context]
    term = correction.a[begin:end] @ cos.T + correction.b[begin:end] @ sin.T  # [t, H, context]
    return term.transpose(0, 1).unflatten(0, (kv_heads, -1))
