"""Models and transforms with made-up numbers and real sizes: memory depends on the sizes alone."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from octavo.base.errors import BadValue
from octavo.calibrate.cache_plan import CacheOptions, plan_for
from octavo.kv.plan import KVPlan, LayerPlan, SidePlan, dtype_name, parse_dtype
from octavo.kv.pool import unfitted
from octavo.kv.scheme import Scheme
from octavo.kv.transform import PLAIN, ROTATION, SideTransform
from octavo.memory.law import weight_bytes
from octavo.models.families import weight_shapes
from octavo.models.linear import missing_rows, packs
from octavo.models.spec import ModelSpec

__all__ = ["plan_without_numbers", "random_weights", "resident_bytes", "scaled", "stand_in_transforms"]

_UNSCALED = "int8"
"""the scheme that is planned in the place of one whose scales are not known"""


def scaled(spec: ModelSpec, factor: float) -> ModelSpec:
    """`spec` with `factor` times its layers, heads and widths; head width, vocabulary and length stay. Raises BadValue
    outside (0, 1]."""
    if not 0 < factor <= 1:
        raise BadValue(f"scale: {factor:g} (above 0, at most 1)")
    group = spec.heads // spec.kv_heads
    kv_heads = max(1, round(spec.kv_heads * factor))
    layers = max(1, round(spec.layers * factor))
    return replace(
        spec, layers=layers, width=max(64, round(spec.width * factor / 64) * 64), heads=kv_heads * group,
        mlp_width=max(64, round(spec.mlp_width * factor / 64) * 64), kv_heads=kv_heads, windows=spec.windows[:layers],
    )  # fmt: skip


def random_weights(spec: ModelSpec, dtype: torch.dtype, device: str) -> Callable[[str], Tensor]:
    """Weights by name, made on the device: vectors (norms, biases) of ones, matrices normal and small."""
    shapes = weight_shapes(spec)

    def load(name: str) -> Tensor:
        weight = torch.empty(shapes[name], dtype=dtype, device=device)
        return weight.fill_(1.0) if len(shapes[name]) == 1 else weight.normal_(0.0, 0.02)

    return load


def plan_without_numbers(dtype: str, spec: ModelSpec) -> KVPlan:
    """The plan that the engine would choose for `dtype`. Schemes that need a calibration's scales get their place in
    it without one."""
    key, value = parse_dtype(dtype)
    names = [_UNSCALED if scheme.needs_scale else scheme.name for scheme in (key, value)]
    plan = plan_for(CacheOptions(kv_cache_dtype=",".join(names)), spec, None).plan

    def side(planned: SidePlan, scheme: Scheme) -> SidePlan:
        static = replace(planned, scheme=scheme, rotated=scheme.rotates, fitted=("static",))
        return static if scheme.needs_scale else planned

    layers = (LayerPlan(side(layer.key, key), side(layer.value, value)) for layer in plan.layers)
    return replace(plan, name=dtype_name(dtype), layers=tuple(layers))


def stand_in_transforms(
    plan: KVPlan, spec: ModelSpec, device: str
) -> tuple[tuple[SideTransform, SideTransform], ...]:  # fmt: skip
    """For every layer the tensors that its fitted transforms would have, in number and size, holding the identity (a
    static scale of one)."""

    def side(planned: SidePlan) -> SideTransform:
        if not planned.fitted:
            return ROTATION if planned.rotated else PLAIN
        one, back = (torch.eye(spec.head_dim, device=device).repeat(spec.kv_heads, 1, 1) for _ in range(2))
        shift = torch.zeros(spec.kv_heads, spec.head_dim, device=device) if _moved(planned) else None
        return SideTransform(planned.rotated, one, back, shift)

    return tuple(
        (side(layer.key), side(layer.value)) if layer.key.fitted or layer.value.fitted else unfitted(layer)
        for layer in plan.layers
    )


def resident_bytes(spec: ModelSpec, plan: KVPlan, dtype: torch.dtype, device: str, positions: int) -> int:
    """Bytes of what lies in memory beside the pages, by arithmetic: weights as they are laid out on `device`, rotary
    tables of `positions` rows, transforms."""
    weights = weight_bytes(spec, str(dtype).removeprefix("torch."))
    row = spec.width * dtype.itemsize
    weights += missing_rows(spec.vocab_size, device) * row
    if spec.tied_embeddings and packs(dtype, device):  # the head is reordered, the embedding is not
        weights += spec.vocab_size * row
    if spec.has_key_bias:  # kept once more, in fp32
        weights += 4 * spec.layers * spec.kv_heads * spec.head_dim
    rope = 2 * positions * (spec.rope.rotary_dim // 2) * 4
    transforms = sum(_transform_bytes(side, spec) for one in plan.layers for side in (one.key, one.value))
    return weights + rope + transforms * (2 if device == "cpu" else 1)  # CPU kernels read a copy in their own layout


def _transform_bytes(side: SidePlan, spec: ModelSpec) -> int:
    """Two matrices for each KV head, and a shift where there is one, in fp32."""
    if not side.fitted:
        return 0
    width = spec.head_dim
    return 4 * spec.kv_heads * (2 * width * width + (width if _moved(side) else 0))


def _moved(side: SidePlan) -> bool:
    return "static" in side.fitted or "constant" in side.fitted
