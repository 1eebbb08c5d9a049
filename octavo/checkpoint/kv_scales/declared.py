"""From what a config declares and what the tensors hold to scales. Both safetensors formats meet here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from octavo.base.errors import BadValue, CheckpointError
from octavo.checkpoint.kv_scales.tensors import find_tensors, read_tensors
from octavo.checkpoint.kv_scales.values import KVScales, LayerScales, SideScales
from octavo.checkpoint.safetensors import StoredTensor

__all__ = ["WITHOUT_SCALES", "Declaration", "read_declared"]

WITHOUT_SCALES = "use --kv-cache-dtype int8, which needs no scales, or calibrate the model again"

_LEAVES = {
    "k": ("k_scale", "k_proj.k_scale", "k_proj.output_scale"),
    "v": ("v_scale", "v_proj.v_scale", "v_proj.output_scale"),
}
_BOTH = "kv_scale"


@dataclass(frozen=True)
class Declaration:
    """What a config file says about the scales beside it."""

    file: Path
    scheme: str
    origin: str
    symmetric: bool = True
    per_head: bool | None = None
    """one scale per KV head, or one per layer; None: the file does not say, either will do"""


def read_declared(folder: Path, declared: Declaration, layers: int, kv_heads: int) -> KVScales:
    """The scales of every layer. Raises CheckpointError, naming layer, tensor and file, if one is missing, of the
    wrong length, or not a positive finite number."""
    found = find_tensors(folder)
    names = {(layer, side): _names(found, layer, side) for layer in range(layers) for side in _LEAVES}
    missing = [place for place, held in names.items() if not held]
    if len(missing) == len(names):
        raise CheckpointError(
            f"{declared.file}: declares {declared.origin}, but {folder} holds no KV scales",
            hint="other engines then take a scale of 1 and may clip; " + WITHOUT_SCALES,
        )
    if missing:
        layer, side = missing[0]
        raise CheckpointError(
            f"{folder}: layer {layer} has no {side}_scale ({len(missing)} of {len(names)} scales missing)",
            hint="is the download complete? if it is, " + WITHOUT_SCALES,
        )
    reader = _Reader(declared, kv_heads, found, read_tensors(found))
    sides = {place: reader.side(held) for place, held in names.items()}
    return KVScales(
        declared.scheme, tuple(LayerScales(sides[n, "k"], sides[n, "v"]) for n in range(layers)), declared.origin
    )


def _names(found: Mapping[str, StoredTensor], layer: int, side: str) -> list[str]:
    """Where the scales of one side are: under its own names if it has any, else under the one for both."""
    prefix = f"model.layers.{layer}.self_attn."
    own = [prefix + leaf for leaf in _LEAVES[side] if prefix + leaf in found]
    return own or [name for name in (prefix + _BOTH,) if name in found]


@dataclass(frozen=True)
class _Reader:
    declared: Declaration
    kv_heads: int
    found: Mapping[str, StoredTensor]
    values: Mapping[str, np.ndarray]

    def side(self, names: list[str]) -> SideScales:
        name, *others = names
        for other in others:
            if not np.array_equal(self.values[name], self.values[other], equal_nan=True):
                raise self._error(name, f"disagrees with {other}", "which one holds is unclear; delete one of them")
        scale = self._per_head(name)
        try:
            return SideScales(scale, self._zero(name, scale))
        except BadValue as error:
            raise self._error(name, error.message) from None

    def _zero(self, scale_name: str, scale: np.ndarray) -> np.ndarray | None:
        """compressed-tensors stores round(x / scale) + zero_point, so that zero is -zero_point * scale."""
        name = scale_name.removesuffix("_scale") + "_zero_point"
        if self.declared.symmetric:
            if name in self.values and self.values[name].any():
                raise self._error(name, f"is not zero, but {self.declared.file.name} declares a symmetric scheme")
            return None
        if name not in self.values:
            raise self._error(scale_name, f"has no {name.rpartition('.')[2]}, which an asymmetric scheme needs")
        with np.errstate(over="ignore", invalid="ignore"):  # refused by name when the side is made
            return -self._per_head(name) * scale

    def _per_head(self, name: str) -> np.ndarray:
        """[] or [1] or [heads, 1, 1] -> [heads]."""
        values, per_head = self.values[name], self.declared.per_head
        counts = {True: (self.kv_heads,), False: (1,), None: (1, self.kv_heads)}[per_head]
        if values.size not in counts or max(values.shape, default=1) != values.size:
            expected = " or ".join(map(str, dict.fromkeys(counts)))
            raise self._error(name, f"has shape {list(values.shape)}, expected {expected} values")
        return np.resize(values.reshape(-1), self.kv_heads)

    def _error(self, name: str, what: str, hint: str = WITHOUT_SCALES) -> CheckpointError:
        return CheckpointError(f"{self.found[name].file}: {name}: {what}", hint)
