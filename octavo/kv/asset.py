"""The folder that a calibration writes, and everything that can be wrong with one.

    kv_plan.json             the plan, layer by layer; the model's fingerprint; data, measurements, settings
    kv_params.safetensors    what was measured of keys, queries and values (statistics.py); every number a plan needs
                             is derived from it, for the asset's own plan and for any other that is asked for

Both are written beside their old versions and renamed, the plan last: an asset is whole, or the old one.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.base.errors import AssetError
from octavo.kv.plan import KVPlan, LayerPlan, SidePlan
from octavo.kv.schemes import SCHEMES
from octavo.kv.statistics import KVStatistics, StaticRule, check_statistics

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FORMAT", "PARAMS_FILE", "PLAN_FILE", "KVAsset", "asset_plan", "check_writable", "find_asset", "open_asset",
    "plan_layers", "read_about", "write_asset",
]  # fmt: skip

FORMAT = 1
PLAN_FILE, PARAMS_FILE = "kv_plan.json", "kv_params.safetensors"
_REDO = "run octavo calibrate again"


@dataclass(frozen=True, eq=False)
class KVAsset:
    """An asset that was read and found whole."""

    path: Path
    about: Mapping[str, Any]
    """kv_plan.json"""
    statistics: KVStatistics

    @property
    def plan(self) -> KVPlan:
        return asset_plan(self.about)

    @property
    def digest(self) -> str:
        return self.about["params_sha256"]

    def check_model(self, name: str, fingerprint: str) -> None:
        """Raise AssetError unless it was calibrated on these very weights."""
        if self.about["fingerprint"] != fingerprint:
            raise AssetError(
                f"{self.path}: calibrated on {self.about['model']} (fingerprint {self.about['fingerprint'][:12]}), and "
                f"this is {name} ({fingerprint[:12]})",
                hint="calibrate this model, or take the asset that belongs to it",
            )


def find_asset(folder: Path) -> Path | None:
    """The asset that lies beside the weights in `folder`: there, or in a folder `kv_asset`."""
    places = (folder, folder / "kv_asset")
    return next((place for place in places if (place / PLAN_FILE).is_file()), None)


def asset_plan(about: Mapping[str, Any]) -> KVPlan:
    """The plan that kv_plan.json spells."""
    layers = tuple(_layer(layer) for layer in about["layers"])
    return KVPlan(about["kv_cache_dtype"], layers, about["params_sha256"])


def read_about(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """An asset's folder and its kv_plan.json, checked by itself: for questions that need no numbers. Raises
    AssetError."""
    folder = Path(path).expanduser()
    if folder.name == PLAN_FILE:
        folder = folder.parent
    if not (folder / PLAN_FILE).is_file():
        raise AssetError(f"no KV asset at `{path}`: {PLAN_FILE} is not there", hint="octavo calibrate makes one")
    return folder, _read_plan(folder / PLAN_FILE)


def open_asset(path: str | Path) -> KVAsset:
    """Read and check an asset. Raises AssetError that names the file and what is wrong with it."""
    folder, about = read_about(path)
    file = folder / PARAMS_FILE
    if not file.is_file():
        raise AssetError(f"{folder}: {PARAMS_FILE} is missing", hint=_REDO)
    digest = _file_digest(file)
    if digest != about["params_sha256"]:
        raise AssetError(f"{file}: not the file that {PLAN_FILE} was written with (sha256 differs)", hint=_REDO)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise AssetError(f"{file}: unreadable: {error}", hint=_REDO) from error
    shape = about["shape"]
    statistics = check_statistics(tensors, shape["layers"], shape["kv_heads"], shape["head_dim"], str(file))
    return KVAsset(folder, about, statistics)


_WANTED = {
    "format": int, "model": str, "fingerprint": str, "shape": dict, "data": dict, "kv_cache_dtype": str,
    "layers": list, "params_sha256": str, "bytes_per_token": (int, float), "static": dict, "key_bias_stored": bool,
}  # fmt: skip


def _read_plan(file: Path) -> dict[str, Any]:
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AssetError(f"{file}: unreadable: {error}", hint=_REDO) from error
    if not isinstance(about, dict):
        raise AssetError(f"{file}: not a JSON object", hint=_REDO)
    for name, kind in _WANTED.items():
        if not isinstance(about.get(name), kind):
            raise AssetError(f"{file}: `{name}` is missing or not what it should be: {about.get(name)!r}", hint=_REDO)
    if about["format"] != FORMAT:
        raise AssetError(f"{file}: format {about['format']}, and this version reads {FORMAT}", hint=_REDO)
    shape = about["shape"]
    for name in ("layers", "kv_heads", "heads", "head_dim"):
        if not isinstance(shape.get(name), int) or shape[name] < 1:
            raise AssetError(f"{file}: shape.{name} is {shape.get(name)!r}", hint=_REDO)
    if len(about["layers"]) != shape["layers"]:
        raise AssetError(
            f"{file}: plans for {len(about['layers'])} layers of a model with {shape['layers']}", hint=_REDO
        )
    for number, layer in enumerate(about["layers"]):
        try:
            _layer(layer)
        except (LookupError, TypeError, ValueError) as error:
            raise AssetError(f"{file}: layer {number}: {error}", hint=_REDO) from error
    try:
        StaticRule(**about["static"])
    except (TypeError, ValueError) as error:
        raise AssetError(f"{file}: `static` is {about['static']}", hint=_REDO) from error
    if about.get("sensitivity") is not None and not _whole(about["sensitivity"], shape["layers"]):
        raise AssetError(f"{file}: `sensitivity` is not whole", hint=_REDO)
    return about


def _whole(sensitivity: Any, layers: int) -> bool:
    """Whether it has a number for K and V of every layer in every scheme that was measured."""
    try:
        names = sensitivity["schemes"]
        rows = [sensitivity[side][name] for side in "kv" for name in names]
        known = bool(names) and all(name in SCHEMES for name in names)
        return known and all(len(row) == layers and all(map(math.isfinite, row)) for row in rows)
    except (LookupError, TypeError):
        return False


def plan_layers(plan: KVPlan) -> list[dict[str, Any]]:
    """The layers of a plan as kv_plan.json spells them."""
    return [
        {name: {"scheme": side.scheme.name, "transforms": list(side.transforms)} for name, side in sides}
        for sides in ((("k", layer.key), ("v", layer.value)) for layer in plan.layers)
    ]


_FITTED = ("constant", "balance", "smooth", "static")
_OF_KEYS = {"bias-free", "constant", "balance", "smooth"}


def _layer(spelled: Mapping[str, Any]) -> LayerPlan:
    if of_keys := _OF_KEYS & set(spelled["v"]["transforms"]):
        raise ValueError(f"{', '.join(sorted(of_keys))} is for keys")
    return LayerPlan(_side(spelled["k"]), _side(spelled["v"]))


def _side(spelled: Mapping[str, Any]) -> SidePlan:
    transforms, name = spelled["transforms"], spelled["scheme"]
    unknown = set(transforms) - {"rotation", "static", *_OF_KEYS}
    if unknown:
        raise ValueError(f"unknown transforms: {', '.join(sorted(unknown))}")
    if name not in SCHEMES:
        raise ValueError(f"unknown scheme: `{name}` (have {', '.join(SCHEMES)})")
    scheme, static = SCHEMES[name], "static" in transforms
    if (static and scheme.peak is None) or (scheme.needs_scale and not static):
        raise ValueError(f"{name} {'needs a' if scheme.needs_scale else 'has no'} static scale")
    fitted = tuple(name for name in _FITTED if name in transforms)
    return SidePlan(scheme, "rotation" in transforms, "bias-free" in transforms, fitted)


def write_asset(folder: Path, about: Mapping[str, Any], statistics: "Mapping[str, Tensor]") -> None:
    """Write both files, each beside its old version and renamed when it is on disk. Raises AssetError."""
    from safetensors.torch import save_file

    params, plan = folder / PARAMS_FILE, folder / PLAN_FILE
    new_params, new_plan = params.with_suffix(".new"), plan.with_suffix(".new")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in sorted(statistics.items())}, new_params)
        text = json.dumps({**about, "params_sha256": _file_digest(new_params)}, indent=1, allow_nan=False)
        new_plan.write_text(text + "\n", encoding="utf-8")
        for file in (new_params, new_plan):
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
        new_params.replace(params)
        new_plan.replace(plan)
    except Exception as error:  # safetensors raises its own for a full disk
        for file in (new_params, new_plan):
            with suppress(OSError):
                file.unlink()
        if isinstance(error, ValueError):
            raise
        raise AssetError(f"cannot write the KV asset to {folder}: {error}", hint="is the disk full?") from error


def check_writable(folder: Path) -> None:
    """Find out before the work rather than after it. Raises AssetError."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise AssetError(f"cannot write the KV asset to {folder}: {error}", hint="name another --out") from error


def _file_digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
