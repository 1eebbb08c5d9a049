"""What a calibration measures of one model's keys, queries and values, and the numbers that follow from it.

Per layer, KV head g and channel d, over all tokens but the first of each window (whose vectors are a class of their
own: attention sinks), after RoPE, keys as they are stored (without the model's bias where it is left out):

    k.min, k.max, k.absmax, k.rms    [G, D]      the same for v and, of the queries that read the head, for q
    k.turned.min, .max               [G, D]      after the Hadamard rotation; the same for v
    k.clip, k.turned.clip            [G]         the share of the head's absmax that 8 bits should reach: with less,
                                                 what is clipped costs more than finer steps save; the same for v
    k.mean                           [G, D]
    k.moment, q.moment               [G, D, D]   mean outer products
    k.first, v.first                 [G, D]      absmax at first tokens
    k.biased.absmax                  [G, D]      with the model's bias, where it has one
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from octavo.base.errors import AssetError, BadValue
from octavo.kv.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KVStatistics", "StaticRule", "check_statistics", "scheme_scale", "static_scale"]

_VECTORS = (
    "k.min", "k.max", "k.absmax", "k.rms", "k.mean", "k.turned.min", "k.turned.max", "k.first", "v.min", "v.max",
    "v.absmax", "v.rms", "v.turned.min", "v.turned.max", "v.first", "q.absmax", "q.rms",
)  # fmt: skip
_MATRICES = ("k.moment", "q.moment")
_SHARES = ("k.clip", "k.turned.clip", "v.clip", "v.turned.clip")
_SIZES = ("absmax", "rms", "first")


@dataclass(frozen=True, eq=False)
class KVStatistics:
    """`tensors`: `layers.N.<name>` -> fp32."""

    tensors: "Mapping[str, Tensor]"

    def __call__(self, layer: int, name: str) -> "Tensor":
        return self.tensors[f"layers.{layer}.{name}"]


def check_statistics(
    tensors: "Mapping[str, Tensor]", layers: int, kv_heads: int, head_dim: int, where: str
) -> KVStatistics:
    """Everything is there, of its shape, and possible. Raises AssetError naming the tensor."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_VECTORS, (kv_heads, head_dim))
    shapes |= dict.fromkeys(_MATRICES, (kv_heads, head_dim, head_dim)) | dict.fromkeys(_SHARES, (kv_heads,))
    hint = "run octavo calibrate again"
    for layer in range(layers):
        for name, shape in shapes.items():
            tensor = tensors.get(f"layers.{layer}.{name}")
            if tensor is None:
                raise AssetError(f"{where}: layers.{layer}.{name} is missing", hint=hint)
            if tuple(tensor.shape) != shape:
                raise AssetError(
                    f"{where}: layers.{layer}.{name} is {tuple(tensor.shape)}, and this model needs {shape}", hint=hint
                )
            if not tensor.isfinite().all():
                raise AssetError(f"{where}: layers.{layer}.{name} has NaN or infinite numbers", hint=hint)
            if name.rsplit(".", 1)[-1] in _SIZES and bool((tensor < 0).any()):
                raise AssetError(f"{where}: layers.{layer}.{name} has negative numbers", hint=hint)
            if name in _SHARES and not bool(((tensor > 0) & (tensor <= 1)).all()):
                raise AssetError(f"{where}: layers.{layer}.{name} has shares that are not in (0, 1]", hint=hint)
        for name in ("k", "v"):
            low, high = tensors[f"layers.{layer}.{name}.turned.min"], tensors[f"layers.{layer}.{name}.turned.max"]
            if bool((high.amax(-1) <= low.amin(-1)).any()):
                raise AssetError(f"{where}: layers.{layer}.{name}: a head has a scale of zero", hint=hint)
    return KVStatistics(tensors)


@dataclass(frozen=True)
class StaticRule:
    """How static scales follow from what was measured."""

    granularity: str = "head"
    """layer: one scale for all heads (the first engines did so); head; channel"""
    symmetric: bool = True
    margin: float = 1.0
    """the range is made so much wider"""
    reach: str = "auto"
    """peak: all that was seen is in range; mse: so much of it that the squared error is least, rare numbers are
    clipped. auto: mse where a head has one scale, else peak: a layer's is as in the first engines"""

    def __post_init__(self) -> None:
        for name, have in (("granularity", ("layer", "head", "channel")), ("reach", ("auto", "peak", "mse"))):
            if getattr(self, name) not in have:
                raise BadValue(f"{name}: `{getattr(self, name)}` (have {', '.join(have)})")
        if self.reach == "mse" and self.granularity == "channel":
            raise BadValue("reach: mse is known of heads and layers, not of channels", hint="use --reach peak")
        if not 0.05 <= self.margin <= 16:
            raise BadValue(f"margin: {self.margin} (from 0.05 to 16)", hint="1.0 is the range that was seen")


def static_scale(
    low: "Tensor", high: "Tensor", peak: float, rule: StaticRule, clip: "Tensor | None" = None
) -> "tuple[Tensor, Tensor]":
    """Ranges `[G, D]` -> scale and zero `[G, D]`, stored = (x - zero) / scale within +-peak.

    `clip` `[G]`: the share of the range that is worth its bits, for `reach` mse; None where nothing may be clipped."""
    if clip is not None and (rule.reach == "mse" or (rule.reach == "auto" and rule.granularity == "head")):
        low, high = low * clip[:, None], high * clip[:, None]
    axes = {"layer": (0, 1), "head": (1,), "channel": ()}[rule.granularity]
    if axes:
        low, high = low.amin(axes, keepdim=True).expand_as(low), high.amax(axes, keepdim=True).expand_as(high)
    if rule.symmetric:
        zero, reach = low * 0, low.abs().maximum(high.abs())
    else:
        zero, reach = (low + high) / 2, (high - low) / 2
    reach = (reach * rule.margin).clamp_min(1e-8)
    return (reach / peak).contiguous(), zero.contiguous()


def scheme_scale(
    scheme: Scheme, low: "Tensor", high: "Tensor", rule: StaticRule, clip: "Tensor | None" = None
) -> "tuple[Tensor, Tensor]":
    """As `static_scale`, for what `scheme` stores. A floating-point one gets powers of two around zero, which change no
    mantissa and only keep clear of both ends of the exponents; nothing of it is clipped."""
    assert scheme.peak is not None, f"{scheme.name} has no static scale"
    if scheme.needs_scale:
        return static_scale(low, high, scheme.peak, rule, clip)
    scale, zero = static_scale(low, high, scheme.peak, replace(rule, symmetric=True))
    return scale.log2().ceil().exp2(), zero
