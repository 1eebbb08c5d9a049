"""An asset's static scales in the formats of other engines (octavo/checkpoint/kv_scales).

Other engines store keys as the model makes them: not rotated, with the model's bias. So the scales follow from
`k.min .. v.max`, by the asset's own rule; where the keys were measured without the model's bias, from
`k.biased.absmax`, which is symmetric.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.base.errors import AssetError, BadValue, CheckpointError, UsageError
from octavo.base.table import Table
from octavo.calibrate.charts import CHARTS
from octavo.checkpoint import open_checkpoint
from octavo.checkpoint.fingerprint import fingerprint
from octavo.checkpoint.folder_copy import copy_checkpoint, make_folder, new_folder
from octavo.checkpoint.kv_scales import (
    FP8,
    INT8_STATIC,
    KVScales,
    LayerScales,
    SideScales,
    find_kv_scales,
    read_past_kv_scales,
    write_compressed_tensors,
    write_modelopt,
    write_past_kv_scales,
)
from octavo.checkpoint.source import Source
from octavo.kv.asset import PARAMS_FILE, PLAN_FILE, KVAsset, open_asset
from octavo.kv.schemes import SCHEMES
from octavo.kv.statistics import StaticRule, scheme_scale

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FORMATS", "Export", "ExportOptions", "asset_scales", "export_scales"]

_LEFT_OUT = frozenset({PLAN_FILE, PARAMS_FILE, *(f"{name}.{kind}" for name in CHARTS for kind in ("png", "svg"))})


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What `octavo export-scales` takes. Raises UnknownChoice or BadValue."""

    asset: str
    format: str
    out: str
    model: str | None = None
    """the checkpoint that is copied to `out`; None where `out` is one already, or where the format needs none"""
    ranks: int = 1
    """tensor-parallel ranks, for past-kv-scale"""
    scheme: str = INT8_STATIC
    reduce: bool = False
    """one scale for all heads where the format, or the reader, has no more"""

    def __post_init__(self) -> None:
        FORMATS.resolve(self.format)
        if SCHEMES.resolve(self.scheme) not in (INT8_STATIC, FP8):
            raise BadValue(f"no scales for `{self.scheme}` (have {INT8_STATIC}, {FP8})")
        if self.ranks != 1 and self.format != "past-kv-scale":
            raise BadValue(f"ranks: {self.ranks}, and only past-kv-scale files are one for each rank")


@dataclass(frozen=True)
class Export:
    """What was written. `scales`: as read back from there."""

    folder: Path
    files: tuple[str, ...]
    scales: KVScales
    notes: tuple[str, ...]
    """what the reader of the scales should know, for people"""


@dataclass(frozen=True)
class _Format:
    """`write(folder, scales, options)`, `read(folder, layers, kv_heads)`; whether it lies in a checkpoint's folder, and
    the origin that its reader reports."""

    write: Callable[[Path, KVScales, ExportOptions], None]
    read: Callable[[Path, int, int], KVScales | None]
    in_checkpoint: bool
    origin: str = ""


FORMATS: Table[_Format] = Table(
    "scale format",
    {
        "compressed-tensors": _Format(
            lambda folder, scales, _: write_compressed_tensors(folder, scales),
            find_kv_scales, True, "compressed-tensors",
        ),
        "modelopt": _Format(
            lambda folder, scales, options: write_modelopt(folder, scales, options.reduce),
            find_kv_scales, True, "ModelOpt",
        ),
        "past-kv-scale": _Format(
            lambda folder, scales, options: write_past_kv_scales(folder, scales, options.ranks, options.reduce),
            read_past_kv_scales, False,
        ),
    },
)  # fmt: skip


def asset_scales(asset: KVAsset, scheme: str = INT8_STATIC, shared: bool = False) -> KVScales:
    """Scales of unrotated keys, bias included, and values, one for each KV head, or with `shared` one for each layer.
    `scheme`: int8-static, or fp8, whose ranges are symmetric whatever the asset's rule."""
    rule = StaticRule(**asset.about["static"])
    if shared or rule.granularity == "channel":  # no format has a scale for each channel
        reach = "mse" if (rule.granularity, rule.reach) == ("head", "auto") else rule.reach
        rule = replace(rule, granularity="layer" if shared else "head", reach=reach)
    if scheme == FP8:
        rule = replace(rule, symmetric=True)
    layers = (
        LayerScales(_side(asset, layer, "k", scheme, rule), _side(asset, layer, "v", scheme, rule))
        for layer in range(asset.about["shape"]["layers"])
    )
    return KVScales(scheme, tuple(layers), f"octavo calibration of {asset.about['model']}")


def _side(asset: KVAsset, layer: int, name: str, scheme: str, rule: StaticRule) -> SideScales:
    low, high, clip = _range(asset, layer, name)
    scale, zero = scheme_scale(SCHEMES[scheme], low, high, rule, clip)
    return SideScales(scale[:, 0].float().numpy(), None if rule.symmetric else zero[:, 0].float().numpy())


def _range(asset: KVAsset, layer: int, name: str) -> "tuple[Tensor, Tensor, Tensor | None]":
    """Smallest and largest `[G, D]` of keys or values as other engines store them, and what of it is worth its bits."""
    biased = asset.statistics.tensors.get(f"layers.{layer}.{name}.biased.absmax")
    if biased is None or asset.about["key_bias_stored"]:
        clip = asset.statistics(layer, f"{name}.clip")
        return asset.statistics(layer, f"{name}.min"), asset.statistics(layer, f"{name}.max"), clip
    return -biased, biased, None


def export_scales(options: ExportOptions) -> Export:
    """Write the scales and read them back. A checkpoint that is named is copied to `out` first; all of it appears
    there at once, or nothing. Raises AssetError, CheckpointError or UsageError."""
    kind, asset, out = FORMATS[options.format], open_asset(options.asset), Path(options.out).expanduser()
    scheme = SCHEMES.resolve(options.scheme)
    scales = asset_scales(asset, scheme, options.reduce and options.format == "compressed-tensors")
    if not kind.in_checkpoint:
        if options.model is not None:
            _check_model(asset, open_checkpoint(options.model))
        make_folder(out)
        return _written(out, kind, scales, options, asset)
    if options.model is None:
        _check_model(asset, _checkpoint_in(out, options))
        return _written(out, kind, scales, options, asset)
    source = open_checkpoint(options.model)
    _require_folder(source, options)
    _check_model(asset, source)
    with new_folder(out, hint="leave --model out to write into the checkpoint there") as new:
        copy_checkpoint(source.path, new, _LEFT_OUT)
        export = _written(new, kind, scales, options, asset)
    return replace(export, folder=out)


def _written(folder: Path, kind: _Format, scales: KVScales, options: ExportOptions, asset: KVAsset) -> Export:
    sizes = asset.about["shape"]["layers"], asset.about["shape"]["kv_heads"]
    if kind.in_checkpoint and (there := find_kv_scales(folder, *sizes)) and not there.origin.startswith(kind.origin):
        raise CheckpointError(
            f"{folder}: already declares KV scales ({there.origin}); of two declarations one would be wrong",
            hint="write to a copy of the checkpoint without them",
        )
    before = _inodes(folder)
    kind.write(folder, scales, options)
    read = kind.read(folder, *sizes)
    assert read is not None, f"{folder} declares no scales after they were written"
    files = tuple(name for name, inode in sorted(_inodes(folder).items()) if before.get(name) != inode)
    return Export(folder, files, read, _notes(asset, scales))


def _inodes(folder: Path) -> dict[str, int]:
    """A file that is replaced gets another."""
    return {file.name: file.stat().st_ino for file in folder.iterdir() if file.is_file()}


def _notes(asset: KVAsset, scales: KVScales) -> tuple[str, ...]:
    static, notes = asset.about["static"], []
    if "layers.0.k.biased.absmax" in asset.statistics.tensors and not asset.about["key_bias_stored"]:
        notes.append("keys carry the model's bias in other engines: their scales are of what was seen with it")
    if static["granularity"] == "channel":
        notes.append("the asset has a scale for each channel, which no format holds: the widest of each head is taken")
    if scales.scheme == FP8 and not static["symmetric"]:
        notes.append("fp8 is symmetric: the asset's zero points are left out")
    return tuple(notes)


def _check_model(asset: KVAsset, source: Source) -> None:
    """The asset is of these weights, and knows their keys with the bias that other engines store."""
    asset.check_model(source.name, fingerprint(source))
    known = asset.about["key_bias_stored"] or "layers.0.k.biased.absmax" in asset.statistics.tensors
    if source.spec.has_key_bias and not known:
        raise AssetError(
            f"{asset.path}: keys were measured without the bias that {source.name} adds to them, and other engines "
            "store it", hint="run octavo calibrate again, with --kv-bias-free off",
        )  # fmt: skip


def _checkpoint_in(out: Path, options: ExportOptions) -> Source:
    if not (out / "config.json").is_file():
        raise UsageError(
            f"{options.format} scales lie in a checkpoint's folder, and there is none at {out}",
            hint="name the checkpoint to copy there with --model",
        )
    source = open_checkpoint(str(out))
    _require_folder(source, options)
    return source


def _require_folder(source: Source, options: ExportOptions) -> None:
    if source.kind != "safetensors":
        raise UsageError(
            f"{source.path} is a {source.kind} checkpoint, which has no place for {options.format} scales",
            hint="name a folder with config.json and safetensors, or write --format past-kv-scale",
        )
