"""From what was asked of the cache, an asset and the model's own traits to a plan and its transforms."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.base.errors import AssetError, UsageError
from octavo.calibrate.budgets import solved_dtypes
from octavo.calibrate.solve import parse_budget
from octavo.checkpoint.fingerprint import fingerprint
from octavo.checkpoint.kv_scales import KVScales, find_kv_scales
from octavo.checkpoint.source import Source
from octavo.kernels.rows import Rope
from octavo.kv.asset import KVAsset, find_asset, open_asset
from octavo.kv.fit import balanced, rescaled, smoothed
from octavo.kv.layout import PAGE_TOKENS
from octavo.kv.plan import DEFAULT_DTYPE, KVPlan, LayerPlan, Rotate, SidePlan, check_width, dtype_name, parse_dtype
from octavo.kv.pool import unfitted
from octavo.kv.statistics import StaticRule, scheme_scale
from octavo.kv.transform import PLAIN, ROTATION, SideTransform
from octavo.models.moments import weight_moments
from octavo.models.spec import ModelSpec

__all__ = ["CacheOptions", "CachePlan", "Transforms", "choose_plan", "make_transforms", "plan_for"]

Transforms = tuple[tuple[SideTransform, SideTransform], ...]

_WEIGHTS_FLOOR, _TEXT_FLOOR = 0.03, 0.001
"""how far moments guessed from weights, and moments measured on text, are trusted (fit.balanced)"""


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """What may be asked of a cache; the meaning of each is that of the engine's option of this name."""

    kv_cache_dtype: str = "auto"
    kv_asset: str | None = None
    kv_rotate: Rotate = "auto"
    kv_bias_free: Rotate = "auto"
    kv_balance: str = "auto"
    block_size: int = PAGE_TOKENS
    max_model_len: int | None = None
    max_num_seqs: int = 64


@dataclass(frozen=True)
class CachePlan:
    """A plan and where the numbers of its transforms come from."""

    plan: KVPlan
    asset: KVAsset | None = None
    scales: KVScales | None = None
    """static scales that the checkpoint itself declares"""
    source: str = "asked for"

    @property
    def rule(self) -> StaticRule:
        return StaticRule(**self.asset.about["static"]) if self.asset else StaticRule()


def choose_plan(options: CacheOptions, source: Source) -> CachePlan:
    """Pure but for reading an asset. Raises AssetError, UsageError or CapacityError where the two do not fit."""
    spec, asset = source.spec, _asset(options, source)
    scales = None if asset else find_kv_scales(_folder(source), spec.layers, spec.kv_heads)
    return plan_for(options, spec, asset, scales)


def plan_for(
    options: CacheOptions, spec: ModelSpec, asset: KVAsset | None, scales: KVScales | None = None
) -> CachePlan:  # fmt: skip
    """As `choose_plan`, with what was found beside the weights given."""
    free = (options.kv_rotate, options.kv_bias_free, options.kv_balance) == ("auto",) * 3
    if options.kv_cache_dtype == "auto" and asset is not None and free:
        return CachePlan(asset.plan, asset, source=f"asset {asset.path}")
    label, names, origin = _schemes(options, spec, asset, scales)
    layers = tuple(_layer(options, spec, name, asset, scales) for name in names)
    digest = asset.digest if asset else (f"weights, balance {options.kv_balance}" if _any_fitted(layers) else "")
    return CachePlan(KVPlan(label, layers, digest), asset, scales, origin)


def _schemes(
    options: CacheOptions, spec: ModelSpec, asset: KVAsset | None, scales: KVScales | None
) -> tuple[str, list[str], str]:
    """What the plan is called, the scheme or K,V pair of every layer, and who says so."""
    wanted = options.kv_cache_dtype
    if wanted == "auto" and asset is not None:  # its schemes, with the options that were asked for
        names = [f"{layer.key.scheme.name},{layer.value.scheme.name}" for layer in asset.plan.layers]
        return asset.plan.name, names, f"asset {asset.path}"
    if wanted == "auto" and scales is not None:
        return scales.scheme, [scales.scheme] * spec.layers, f"checkpoint ({scales.origin})"
    if wanted == "auto":
        return DEFAULT_DTYPE, [DEFAULT_DTYPE] * spec.layers, "default"
    if not wanted.startswith("auto:"):
        return dtype_name(wanted), [wanted] * spec.layers, "asked for"
    if asset is None:
        raise UsageError(
            f"`{wanted}` needs a calibration with sensitivities, and there is none for this model",
            hint="run octavo calibrate --sensitivity and give its folder with --kv-asset",
        )
    tokens = (options.max_model_len or spec.max_position) * options.max_num_seqs
    names = list(solved_dtypes(parse_budget(wanted.removeprefix("auto:")), asset, options.block_size, tokens))
    return wanted, names, f"solved from {asset.path}"


def _any_fitted(layers: tuple[LayerPlan, ...]) -> bool:
    return any(layer.key.fitted or layer.value.fitted for layer in layers)


def _folder(source: Source) -> Path:
    return source.path if source.path.is_dir() else source.path.parent


def _asset(options: CacheOptions, source: Source) -> KVAsset | None:
    """The asset that was named, or the one beside the weights; of this very model, or an error."""
    path: Any = options.kv_asset
    if path == "off":
        return None
    if path is None:
        path = find_asset(_folder(source))
        if path is None:
            return None
    asset, spec = open_asset(path), source.spec
    shape = {"layers": spec.layers, "kv_heads": spec.kv_heads, "heads": spec.heads, "head_dim": spec.head_dim}
    if asset.about["shape"] != shape:
        raise AssetError(
            f"{asset.path}: calibrated for {asset.about['shape']}, and {source.name} has {shape}",
            hint="calibrate this model, or take the asset that belongs to it",
        )
    asset.check_model(source.name, fingerprint(source))
    return asset


def _layer(
    options: CacheOptions, spec: ModelSpec, dtype: str, asset: KVAsset | None, scales: KVScales | None
) -> LayerPlan:  # fmt: skip
    check_width(dtype, spec.head_dim)
    key, value = parse_dtype(dtype)
    folded = key.vector_bytes(spec.head_dim) < 2 * spec.head_dim  # below 16 bits
    bias_free = spec.has_key_bias and (options.kv_bias_free == "on" or (options.kv_bias_free == "auto" and folded))
    if options.kv_bias_free == "on" and not spec.has_key_bias:
        raise UsageError(
            f"kv_bias_free: this {spec.family} model adds no bias to its keys",
            hint="leave it at auto: rotation is enough",
        )
    sides = []
    for scheme, is_key in ((key, True), (value, False)):
        declared = scales is not None and scheme.name == scales.scheme
        turned = scheme.rotates if options.kv_rotate == "auto" else options.kv_rotate == "on"
        side = SidePlan(scheme, turned and not declared, bias_free and is_key and not declared)
        static = scheme.needs_scale or (scheme.peak is not None and (asset is not None or declared))
        if static and asset is None and not declared:
            raise UsageError(
                f"{scheme.name} needs scales from a calibration and there is none for this model",
                hint="run octavo calibrate and give its folder with --kv-asset, or use int8, which needs none",
            )
        fitted = ("static",) if static else _key_fit(options, side, spec, asset) if is_key else ()
        _same_bias(side, asset if fitted and is_key and spec.has_key_bias else None)
        sides.append(replace(side, fitted=fitted))
    return LayerPlan(sides[0], sides[1])


def _same_bias(side: SidePlan, asset: KVAsset | None) -> None:
    """What was measured of keys holds for keys that carry the bias, or for keys without; not for both."""
    if asset is None or side.bias_free != asset.about["key_bias_stored"]:
        return
    made = "with their bias" if asset.about["key_bias_stored"] else "without their bias"
    raise UsageError(f"{asset.path} was calibrated for keys stored {made}", hint="leave --kv-bias-free at auto")


def _key_fit(options: CacheOptions, side: SidePlan, spec: ModelSpec, asset: KVAsset | None) -> tuple[str, ...]:
    """Balance is on by default where keys have fewer than 8 bits: there it is worth a product with a matrix."""
    few_bits = side.scheme.vector_bytes(spec.head_dim) < spec.head_dim
    if not side.rotated or options.kv_balance == "off" or (options.kv_balance == "auto" and not few_bits):
        return ()
    if options.kv_balance == "constant" and asset is None:
        raise UsageError(
            "kv_balance constant needs the mean of the keys, from a calibration", hint="run octavo calibrate, or use on"
        )
    return ("balance" if options.kv_balance in ("auto", "on") else options.kv_balance,)


def make_transforms(
    cache: CachePlan, spec: ModelSpec, load: Callable[[str], Tensor], rope: Rope | None, device: str
) -> Transforms:
    """The numbers of every layer's transforms, on the device."""
    made = []
    for number, layer in enumerate(cache.plan.layers):
        if not layer.key.fitted and not layer.value.fitted:
            made.append(unfitted(layer))
            continue
        key = _fit_key(cache, spec, number, layer.key, load, rope)
        value = ROTATION if layer.value.rotated else PLAIN
        if "static" in layer.value.fitted:
            value = _static(cache, spec, number, "v", layer.value, value)
        made.append((_on(key, device), _on(value, device)))
    return tuple(made)


def _fit_key(
    cache: CachePlan, spec: ModelSpec, number: int, side: SidePlan, load: Callable[[str], Tensor], rope: Rope | None
) -> SideTransform:  # fmt: skip
    transform = ROTATION if side.rotated else PLAIN
    if "balance" in side.fitted or "smooth" in side.fitted:
        if cache.asset is not None:
            statistics, floor = cache.asset.statistics, _TEXT_FLOOR
            keys, queries = statistics(number, "k.moment"), statistics(number, "q.moment")
        else:
            keys, queries = weight_moments(spec, number, load, rope, not side.bias_free)
            floor = _WEIGHTS_FLOOR
        if "balance" in side.fitted:
            transform = balanced(keys, queries, floor)
        else:
            transform = smoothed(keys, queries, spec.rope.rotary_dim)
    if "constant" in side.fitted and cache.asset is not None:
        mean = transform.stored(cache.asset.statistics(number, "k.mean")[None])[0]
        transform = rescaled(transform, torch.ones_like(mean), mean, keys=True)
    return _static(cache, spec, number, "k", side, transform) if "static" in side.fitted else transform


def _static(
    cache: CachePlan, spec: ModelSpec, number: int, name: str, side: SidePlan, transform: SideTransform
) -> SideTransform:  # fmt: skip
    if cache.asset is not None:
        statistics, prefix = cache.asset.statistics, f"{name}.turned" if side.rotated else name
        low, high = statistics(number, f"{prefix}.min"), statistics(number, f"{prefix}.max")
        scale, zero = scheme_scale(side.scheme, low, high, cache.rule, statistics(number, f"{prefix}.clip"))
        return rescaled(transform, scale, zero, keys=name == "k")
    assert cache.scales is not None, "a static plan has an asset or declared scales"
    layer = cache.scales.layers[number]
    declared = layer.key if name == "k" else layer.value
    scale = torch.from_numpy(declared.scale).float()[:, None].expand(-1, spec.head_dim)
    zero = (
        scale * 0
        if declared.zero is None
        else torch.from_numpy(declared.zero).float()[:, None].expand(-1, spec.head_dim)
    )
    return rescaled(transform, scale, zero, keys=name == "k")


def _on(side: SideTransform, device: str) -> SideTransform:
    if side.matrix is None or side.back is None:
        return side
    shift = None if side.shift is None else side.shift.to(device)
    return replace(side, matrix=side.matrix.to(device), back=side.back.to(device).contiguous(), shift=shift)
