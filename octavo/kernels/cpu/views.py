"""The addresses of a layer, of a step and of a rotary table, worked out once and kept while their owner lives.

The kernels run twice a layer a step; as plain ints their arguments cost nothing to pass.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from octavo.kernels.cpu.rotation import matrix_of, padded_matrices
from octavo.kernels.rows import Rope, Rows
from octavo.kv.pool import LayerPages
from octavo.kv.row_codec import rows_of
from octavo.kv.transform import SideTransform

__all__ = ["Angles", "Layer", "LayerView", "Step", "angles_of", "layer_view", "step_view"]

Owner = TypeVar("Owner")
View = TypeVar("View")


class Layer(NamedTuple):
    """Where a layer's pages are, how long their parts are in bytes, and what `turn` takes for its K, q, V and output:
    that of KV head h is at `turn + h * stride`. The constants of KV head h are 4 * dim * h bytes from `shift`; 0: none.
    """

    pages: int
    page_bytes: int
    head_bytes: int
    page_tokens: int
    kv_heads: int
    dim: int
    turn_key: int
    turn_query: int
    turn_value: int
    turn_back: int
    key_stride: int
    value_stride: int
    key_shift: int
    value_shift: int


class Step(NamedTuple):
    """The addresses of what `Rows` holds."""

    starts: int
    contexts: int
    tables: int
    table_width: int
    rows: int
    positions: int
    slots: int


class Angles(NamedTuple):
    """cos and sin as `[W, stride]`, one row an angle, one column a position, padded to whole tiles."""

    cos: int
    sin: int
    stride_bytes: int
    width: int


@dataclass(frozen=True)
class LayerView:
    layer: Layer
    key: tuple[int, ...]
    value: tuple[int, ...]
    kernels: dict[str, Callable[..., None]]
    """filled by the operations: the compiled kernel of this layer's pair of schemes"""
    kept: tuple[Tensor, ...]
    """what the addresses point into"""


class _Views(Generic[Owner, View]):
    """A view per owner, found by identity, dropped when the owner goes."""

    def __init__(self, make: Callable[[Owner], View]):
        self._make = make
        self._made: dict[int, tuple[weakref.ref[Any], View]] = {}

    def __call__(self, owner: Owner) -> View:
        found = self._made.get(id(owner))
        if found is not None and found[0]() is owner:
            return found[1]
        view, key, made = self._make(owner), id(owner), self._made
        made[key] = (weakref.ref(owner, lambda _: made.pop(key, None)), view)
        return view


def _make_layer(layer: LayerPages) -> LayerView:
    layout, plan, dim = layer.layout, layer.plan, layer.layout.head_dim
    assert layer.pages.is_contiguous(), f"pages with strides {layer.pages.stride()}"
    keys, values = _make_side(layer.key, dim, inverse=False), _make_side(layer.value, dim, inverse=True)
    geometry = Layer(
        layer.pages.data_ptr(), layout.page_bytes, layout.head_bytes, layout.page_tokens, layout.kv_heads, dim,
        keys.turn, keys.back, values.turn, values.back, keys.stride, values.stride, keys.shift, values.shift,
    )  # fmt: skip
    key, value = rows_of(plan.key.scheme, layout.key_slots), rows_of(plan.value.scheme, layout.value_slots)
    return LayerView(geometry, key, value, {}, keys.kept + values.kept)


class _Side(NamedTuple):
    turn: int
    back: int
    stride: int
    shift: int
    kept: tuple[Tensor, ...]


def _make_side(side: SideTransform, dim: int, inverse: bool) -> _Side:
    """`inverse`: what undoes a rotation is its transpose (values), else the rotation itself (queries)."""
    if side.matrix is None or side.back is None:
        return _Side(matrix_of(side.rotated, dim), matrix_of(side.rotated, dim, inverse), 0, 0, ())
    turn, back = padded_matrices(side.matrix), padded_matrices(side.back)
    kept, shift = (turn, back), 0
    if side.shift is not None:
        constants = side.shift.float().cpu().contiguous()
        kept, shift = (*kept, constants), constants.data_ptr()
    return _Side(turn.data_ptr(), back.data_ptr(), turn[0].nbytes, shift, kept)


def _address(tensor: Tensor, dtype: torch.dtype) -> int:
    assert tensor.dtype == dtype, f"{tensor.dtype}, want {dtype}"
    assert tensor.is_contiguous(), f"strides {tensor.stride()} of {tuple(tensor.shape)}"
    return tensor.data_ptr()


def _make_step(rows: Rows) -> Step:
    tables = rows.block_tables
    assert tables.dtype == torch.int32, f"block tables {tables.dtype}"
    assert tables.stride(-1) == 1, f"block tables with strides {tables.stride()}"
    return Step(
        _address(rows.query_start, torch.int32), _address(rows.context, torch.int32), tables.data_ptr(),
        tables.stride(0), len(rows.context), _address(rows.positions, torch.int64), _address(rows.slots, torch.int64),
    )  # fmt: skip


def _make_angles(rope: Rope) -> tuple[Angles, tuple[Tensor, ...]]:
    positions, width = rope.cos.shape
    padded = torch.zeros(2, width, -(-positions // 64) * 64 + 64)
    padded[0, :, :positions], padded[1, :, :positions] = rope.cos.T, rope.sin.T
    return Angles(padded[0].data_ptr(), padded[1].data_ptr(), 4 * padded.shape[-1], width), (padded,)


layer_view: _Views[LayerPages, LayerView] = _Views(_make_layer)
step_view: _Views[Rows, Step] = _Views(_make_step)
angles_of: _Views[Rope, tuple[Angles, tuple[Tensor, ...]]] = _Views(_make_angles)
"""the angles and the tensors that keep their addresses valid"""
