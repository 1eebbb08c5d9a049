"""Scales as values: one number per KV head, for K and for V of every layer. Checked where they are born."""

from dataclasses import dataclass

import numpy as np

from octavo.base.errors import BadValue, UnknownChoice

__all__ = ["FP8", "INT8_STATIC", "KVScales", "LayerScales", "SideScales", "shared_by_heads"]

FP8, INT8_STATIC = "fp8", "int8-static"

_SMALLEST = float(np.finfo(np.float32).tiny)  # 1 / scale must be finite in fp32
_CODES = (-128, 127)


@dataclass(frozen=True, eq=False)
class SideScales:
    """K or V of one layer: x ~ stored * scale + zero. Raises BadValue unless every scale is positive and finite."""

    scale: np.ndarray
    """fp32 [kv_heads] > 0"""
    zero: np.ndarray | None = None
    """fp32 [kv_heads], in the units of x (a float offset, not a code); None is symmetric"""

    def __post_init__(self) -> None:
        for what, values in (("scale", self.scale), ("zero", self.zero)):
            if values is not None and (values.dtype != np.float32 or values.ndim != 1 or not values.size):
                raise BadValue(f"{what}: {values.dtype} of shape {values.shape} (expected float32 [kv_heads])")
        if self.zero is not None and self.zero.shape != self.scale.shape:
            raise BadValue(f"{self.zero.size} zeros for {self.scale.size} scales")
        _require(
            np.isfinite(self.scale) & (self.scale >= _SMALLEST), "scale", self.scale, "positive, finite, not subnormal"
        )
        if self.zero is not None:
            _require(np.isfinite(self.zero), "zero", self.zero, "finite")

    @property
    def kv_heads(self) -> int:
        return self.scale.size

    @property
    def uniform(self) -> bool:
        """Whether all heads have the same scale and zero."""
        return all(values is None or bool((values == values[0]).all()) for values in (self.scale, self.zero))


@dataclass(frozen=True)
class LayerScales:
    key: SideScales
    value: SideScales

    @property
    def sides(self) -> tuple[tuple[str, SideScales], tuple[str, SideScales]]:
        return ("k", self.key), ("v", self.value)


@dataclass(frozen=True)
class KVScales:
    scheme: str
    """`fp8` or `int8-static`"""
    layers: tuple[LayerScales, ...]
    origin: str
    """who wrote them, for people: `compressed-tensors kv_cache_scheme`"""

    def __post_init__(self) -> None:
        if self.scheme not in (FP8, INT8_STATIC):
            raise UnknownChoice(f"no static scales for scheme `{self.scheme}` (have {FP8}, {INT8_STATIC})")
        heads = {side.kv_heads for layer in self.layers for _, side in layer.sides}
        if len(heads) != 1:
            raise BadValue(f"scales of {sorted(heads)} KV heads in one model (expected one count)")
        if self.scheme == FP8 and not self.symmetric:
            raise BadValue("fp8 scales with a zero point (fp8 is symmetric)")

    @property
    def kv_heads(self) -> int:
        return self.layers[0].key.kv_heads

    @property
    def symmetric(self) -> bool:
        return all(side.zero is None for layer in self.layers for _, side in layer.sides)

    @property
    def per_head(self) -> bool:
        """Whether any layer's heads differ."""
        return not all(side.uniform for layer in self.layers for _, side in layer.sides)


def shared_by_heads(side: SideScales, where: str, reduce: bool) -> SideScales:
    """One scale (and zero) for all heads of `side`, as [1] arrays. Heads that differ are a BadValue that names `where`,
    unless `reduce`: then the one range that holds every head's. Symmetric: the largest scale. Asymmetric: the union of
    what the int8 codes of each head can express, [zero - 128 scale, zero + 127 scale], so that nothing clips anew."""
    if side.uniform:
        return SideScales(side.scale[:1], None if side.zero is None else side.zero[:1])
    if not reduce:
        raise BadValue(
            f"{where}: {side.kv_heads} heads with different scales must share one",
            hint="pass reduce=True (--reduce) to take the widest range, or write compressed-tensors, with one each",
        )
    if side.zero is None:
        return SideScales(side.scale.max(keepdims=True))
    scale, zero = side.scale.astype(np.float64), side.zero.astype(np.float64)
    low, high = (zero + _CODES[0] * scale).min(), (zero + _CODES[1] * scale).max()
    wide = (high - low) / (_CODES[1] - _CODES[0])
    return SideScales(np.array([wide], np.float32), np.array([low - _CODES[0] * wide], np.float32))


def _require(good: np.ndarray, what: str, values: np.ndarray, must_be: str) -> None:
    if not good.all():
        head = int(np.argmin(good))
        raise BadValue(f"the {what} of head {head} is {values[head]:g} (must be {must_be})")
