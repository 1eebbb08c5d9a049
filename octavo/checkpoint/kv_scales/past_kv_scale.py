"""LMDeploy / TurboMind, 2023: raw fp32 files `layers.L.past_kv_scale.R.weight`, one per layer L and tensor-parallel
rank R; rank R holds an even share of the KV heads, in order.

    [k_scale, v_scale]                symmetric    x ~ q * scale
    [k_scale, k_zp, v_scale, v_zp]    asymmetric   x ~ q * scale + zp, zp = (max + min) / 2, scale = (max - min) / 255

q is a signed byte; zp is a float in the units of x (lmdeploy/lite/apis/kv_qparams.py). The very first exporter of July
2023 wrote zp = min, for codes from 0 to 255; its runtime read two floats only, so those files were never served. The
two cannot be told apart, and the meaning above is the one that is read.
"""

import re
from pathlib import Path

import numpy as np

from octavo.base.errors import BadValue, CheckpointError
from octavo.checkpoint.kv_scales.files import replace_files
from octavo.checkpoint.kv_scales.values import INT8_STATIC, KVScales, LayerScales, SideScales, shared_by_heads

__all__ = ["read_past_kv_scales", "write_past_kv_scales"]

_NAME = re.compile(r"layers\.(0|[1-9]\d*)\.past_kv_scale\.(0|[1-9]\d*)\.weight")
_AGAIN = "export the scales again, or use --kv-cache-dtype int8, which needs none"


def read_past_kv_scales(folder: Path, layers: int, kv_heads: int) -> KVScales:
    """The scales of all layers; the number of ranks is that of the files, and does not change what they mean. Raises
    CheckpointError, naming the file, if one is missing, of the wrong length, or holds no positive finite scale."""
    there = _places(folder)
    if not there:
        raise CheckpointError(
            f"{folder}: no {_file_name(0, 0)}", hint="in a TurboMind workspace they lie in triton_models/weights"
        )
    ranks = 1 + max(rank for _, rank in there)
    _require_even(folder, kv_heads, ranks)
    wanted = [(layer, rank) for layer in range(layers) for rank in range(ranks)]
    missing = [place for place in wanted if place not in there]
    if missing:
        raise CheckpointError(
            f"{folder}: {_file_name(*missing[0])} is missing ({len(missing)} of {len(wanted)} files)", hint=_AGAIN
        )
    if len(there) > len(wanted):
        extra = min(set(there) - set(wanted))
        raise CheckpointError(
            f"{folder}: {_file_name(*extra)} belongs to another model: this one has {layers} layers", hint=_AGAIN
        )
    read = {place: _read(folder / _file_name(*place)) for place in wanted}
    return KVScales(
        INT8_STATIC,
        tuple(_layer(folder, n, [read[n, rank] for rank in range(ranks)], kv_heads) for n in range(layers)),
        f"LMDeploy past_kv_scale, {ranks} rank{'s' if ranks > 1 else ''}",
    )


def write_past_kv_scales(folder: Path, scales: KVScales, ranks: int, reduce: bool = False) -> None:
    """Write one file per layer and rank; none is replaced before all are on disk. A rank has one scale for all its
    heads: heads that differ are a BadValue, unless `reduce`, which takes the range that holds every head's (for
    symmetric scales, the largest). Raises CheckpointError if files of another model or rank count are there, which
    would be read with these, or if a file cannot be written."""
    if scales.scheme != INT8_STATIC:
        raise BadValue(f"past_kv_scale files hold int8 scales, not {scales.scheme}", hint="write compressed-tensors")
    _require_even(folder, scales.kv_heads, ranks)
    places = [(layer, rank) for layer in range(len(scales.layers)) for rank in range(ranks)]
    stale = set(_places(folder)) - set(places)
    if stale:
        raise CheckpointError(
            f"{folder}: {_file_name(*min(stale))} is there and would be read with the new files",
            hint="delete the past_kv_scale files there, or write to another folder",
        )
    replace_files({folder / _file_name(*place): _encode(scales, *place, ranks, reduce) for place in places})


def _file_name(layer: int, rank: int) -> str:
    return f"layers.{layer}.past_kv_scale.{rank}.weight"


def _places(folder: Path) -> set[tuple[int, int]]:
    """(layer, rank) of every such file in `folder`."""
    matches = (_NAME.fullmatch(file.name) for file in folder.glob("layers.*.past_kv_scale.*.weight"))
    return {(int(match[1]), int(match[2])) for match in matches if match}


def _require_even(folder: Path, kv_heads: int, ranks: int) -> None:
    if ranks < 1 or kv_heads % ranks:
        raise CheckpointError(
            f"{folder}: {kv_heads} KV heads cannot be split evenly over {ranks} ranks",
            hint="the files belong to another model, or the number of ranks must divide the KV heads",
        )


def _read(file: Path) -> tuple[SideScales, SideScales]:
    """K and V of one file, as [1] arrays."""
    try:
        raw = file.read_bytes() if file.stat().st_size in (8, 16) else None
        stored_bytes = file.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    if raw is None:
        raise CheckpointError(
            f"{file}: holds {stored_bytes} bytes, expected 8 (k_scale, v_scale) or 16 (with zero points), in fp32",
            hint=_AGAIN,
        )
    numbers = np.frombuffer(raw, "<f4").astype(np.float32).reshape(2, -1, 1)  # [side, scale and zero, 1]
    sides: list[SideScales] = []
    for name, side in zip(("k", "v"), numbers, strict=True):
        try:
            sides.append(SideScales(side[0], side[1] if len(side) > 1 else None))
        except BadValue as error:
            raise CheckpointError(f"{file}: {name}: {error.message}", hint=_AGAIN) from None
    return sides[0], sides[1]


def _layer(folder: Path, layer: int, of_ranks: list[tuple[SideScales, SideScales]], kv_heads: int) -> LayerScales:
    symmetric = [key.zero is None for key, _ in of_ranks]
    if len(set(symmetric)) > 1:
        odd = symmetric.index(not symmetric[0])
        raise CheckpointError(
            f"{folder}: {_file_name(layer, odd)} and {_file_name(layer, 0)} do not both have zero points", hint=_AGAIN
        )
    heads = kv_heads // len(of_ranks)
    key, value = (_joined([sides[n] for sides in of_ranks], heads) for n in (0, 1))
    return LayerScales(key, value)


def _joined(of_ranks: list[SideScales], heads: int) -> SideScales:
    """[1] per rank -> [kv_heads]."""
    zeros = [side.zero for side in of_ranks if side.zero is not None]
    scale = np.repeat(np.concatenate([side.scale for side in of_ranks]), heads)
    return SideScales(scale, np.repeat(np.concatenate(zeros), heads) if zeros else None)


def _encode(scales: KVScales, layer: int, rank: int, ranks: int, reduce: bool) -> bytes:
    heads = scales.kv_heads // ranks
    mine = slice(rank * heads, (rank + 1) * heads)
    numbers: list[float] = []
    for name, side in scales.layers[layer].sides:
        share = SideScales(side.scale[mine], None if side.zero is None else side.zero[mine])
        one = shared_by_heads(share, f"layer {layer}, {name}, rank {rank}", reduce)
        numbers += [one.scale[0]] if scales.symmetric else [one.scale[0], 0.0 if one.zero is None else one.zero[0]]
    return np.array(numbers, "<f4").tobytes()
