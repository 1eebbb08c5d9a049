"""Scale tensors in a folder of safetensors, sharded or not: found by name in the headers, read alone, without torch.

Tools name them differently; all lie under `model.layers.N.self_attn.`:

    k_scale, v_scale                            compressed-tensors (and `_zero_point`)
    k_proj.output_scale, v_proj.output_scale    compressed-tensors before September 2024, Quark
    k_proj.k_scale, v_proj.v_scale              ModelOpt
    kv_scale                                    AutoFP8: one number for both
"""

import json
import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from octavo.base.errors import CheckpointError
from octavo.checkpoint.jsonfile import read_json
from octavo.checkpoint.kv_scales.files import json_bytes
from octavo.checkpoint.safetensors import StoredTensor, read_safetensors_header

__all__ = ["SCALES_FILE", "find_tensors", "new_tensor_files", "read_tensors"]

SCALES_FILE = "kv_scales.safetensors"

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_NAME = re.compile(r"model\.layers\.\d+\.self_attn\.([kv]_proj\.)?(k|v|kv|output)_(scale|zero_point)")
_PLAIN = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
_MOST_BYTES = 1 << 16  # of one tensor of scales


def find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The scale tensors of `folder` by name, from headers alone. Raises CheckpointError if a file is damaged, or if
    two files hold the same tensor."""
    found: dict[str, StoredTensor] = {}
    for file in _files(folder):
        for name, stored in read_safetensors_header(file).items():
            if _NAME.fullmatch(name) is None:
                continue
            if name in found:
                raise CheckpointError(
                    f"{folder}: {name} is in both {found[name].file.name} and {file.name}",
                    hint="which one holds is unclear; delete one of them",
                )
            found[name] = stored
    return found


def read_tensors(tensors: Mapping[str, StoredTensor]) -> dict[str, np.ndarray]:
    """The values as fp32, in the stored shapes. Reads these tensors only; each header once."""
    values: dict[str, np.ndarray] = {}
    in_order = sorted(tensors.items(), key=lambda item: item[1].file)
    for file, group in groupby(in_order, key=lambda item: item[1].file):
        try:
            with file.open("rb") as opened:
                header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
                data_start = opened.tell()
                for name, stored in group:
                    _require_readable(name, stored)
                    opened.seek(data_start + header[name]["data_offsets"][0])
                    values[name] = _decode(opened.read(stored.stored_bytes), stored)
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    return values


def new_tensor_files(folder: Path, tensors: dict[str, np.ndarray]) -> dict[Path, bytes]:
    """What to write so that `folder` holds `tensors` beside its weights: the file, and the index if there is one.
    Raises CheckpointError if the folder's other files hold scales already: readers would not know which to take."""
    from safetensors.numpy import save

    # safetensors takes the address of the data, whatever its strides
    dense = {name: np.array(values, order="C") for name, values in tensors.items()}
    files = {folder / SCALES_FILE: save(dense, {"format": "pt"})}
    others = [file for file in _files(folder) if file.name != SCALES_FILE]
    for file in others:
        held = next((name for name in read_safetensors_header(file) if _NAME.fullmatch(name)), None)
        if held is not None:
            raise CheckpointError(
                f"{file}: already holds KV scales ({held})", hint="write to a copy of the checkpoint without them"
            )
    if (folder / _SINGLE).is_file():
        return files
    if (folder / _INDEX).is_file():
        index = read_json(folder / _INDEX)
        kept = {name: shard for name, shard in _weight_map(folder).items() if shard != SCALES_FILE}
        index["weight_map"] = kept | dict.fromkeys(tensors, SCALES_FILE)
        return {**files, folder / _INDEX: json_bytes(index)}
    if others:
        raise CheckpointError(
            f"{folder}: a second file beside {others[0].name} needs {_SINGLE} or {_INDEX}",
            hint=f"rename {others[0].name} to {_SINGLE}",
        )
    return files


def _files(folder: Path) -> list[Path]:
    """The files that may hold scales, in the order in which weights are looked for, then ours."""
    ours = [folder / SCALES_FILE] if (folder / SCALES_FILE).is_file() else []
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE, *ours]
    if (folder / _INDEX).is_file():
        return _indexed(folder, ours)
    every = (file for file in folder.glob("*.safetensors") if not file.name.startswith("consolidated"))
    return sorted(every)


def _indexed(folder: Path, ours: list[Path]) -> list[Path]:
    """The shards in which the index places scales; other shards are not opened."""
    places = {name: shard for name, shard in _weight_map(folder).items() if _NAME.fullmatch(name)}
    for name, shard in places.items():
        if Path(shard).name != shard:
            raise CheckpointError(f"{folder / _INDEX}: `{shard}` is not a file of this folder")
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder}: {shard}, which holds {name}, is missing", hint="download it again")
    for shard, names in _by_value(places.items()):
        lost = names - read_safetensors_header(folder / shard).keys()
        if lost:
            raise CheckpointError(
                f"{folder / _INDEX}: places {min(lost)} in {shard}, which does not hold it", hint="download both again"
            )
    return sorted({folder / shard for shard in places.values()} | set(ours))


def _weight_map(folder: Path) -> dict[str, str]:
    places = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise CheckpointError(f"{folder / _INDEX}: `weight_map` does not map names to files")
    return places


def _by_value(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, set[str]]]:
    grouped: dict[str, set[str]] = {}
    for key, value in pairs:
        grouped.setdefault(value, set()).add(key)
    return sorted(grouped.items())


def _require_readable(name: str, stored: StoredTensor) -> None:
    if stored.stored_bytes > _MOST_BYTES:
        raise CheckpointError(f"{stored.file}: {name} has {stored.stored_bytes} bytes, too many for scales")
    if stored.dtype not in _DECODERS:
        raise CheckpointError(f"{stored.file}: {name} is stored as {stored.dtype} (can read {', '.join(_DECODERS)})")


def _decode(raw: bytes, stored: StoredTensor) -> np.ndarray:
    with np.errstate(over="ignore"):  # too large for fp32 is inf, which is refused by name later
        return _DECODERS[stored.dtype](raw).astype(np.float32).reshape(stored.shape)


def _bf16(raw: bytes) -> np.ndarray:
    return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)


def _e4m3(raw: bytes) -> np.ndarray:
    """Sign, 4 bits of exponent (bias 7), 3 of mantissa; all ones is NaN, there is no infinity."""
    codes = np.frombuffer(raw, np.uint8)
    exponent, mantissa = (codes >> 3 & 15).astype(np.int32), (codes & 7).astype(np.float32)
    size = np.where(exponent, np.ldexp(8 + mantissa, exponent - 10), np.ldexp(mantissa, -9))
    return np.where(codes & 127 == 127, np.nan, np.where(codes & 128, -size, size))


def _plain(kind: str) -> Any:
    return lambda raw: np.frombuffer(raw, kind)


_DECODERS = {name: _plain(kind) for name, kind in _PLAIN.items()} | {"BF16": _bf16, "F8_E4M3": _e4m3}
