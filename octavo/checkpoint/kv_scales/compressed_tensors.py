"""compressed-tensors: `quantization_config.kv_cache_scheme` in config.json, `k_scale` and `v_scale` per layer.

Strategy `tensor` is one scale per layer, [1]; `attn_head` one per KV head, [kv_heads, 1, 1]. It computes
stored = round(x / scale + zero_point) and x ~ (stored - zero_point) * scale.
"""

from pathlib import Path
from typing import Any

import numpy as np

from octavo.base.errors import CheckpointError
from octavo.base.log import log
from octavo.checkpoint.jsonfile import read_json_if_there
from octavo.checkpoint.kv_scales.declared import WITHOUT_SCALES, Declaration
from octavo.checkpoint.kv_scales.files import json_bytes, replace_files
from octavo.checkpoint.kv_scales.tensors import new_tensor_files
from octavo.checkpoint.kv_scales.values import FP8, INT8_STATIC, KVScales

__all__ = ["compressed_tensors_config", "compressed_tensors_declaration", "write_compressed_tensors"]

_METHOD = "compressed-tensors"
_SCHEMES = {FP8: ("float", 8), INT8_STATIC: ("int", 8)}
_STRATEGIES = {"tensor": False, "attn_head": True}  # -> one scale per head


def compressed_tensors_declaration(folder: Path) -> Declaration | None:
    """What config.json declares; None if nothing, or if scales are to be found at run time (then it says so in the
    log). Raises CheckpointError on bits, types and strategies without a meaning here."""
    file = folder / "config.json"
    config = read_json_if_there(file).get("quantization_config") or {}
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: quantization_config is not an object", hint="download the file again")
    method, scheme = str(config.get("quant_method", "")), config.get("kv_cache_scheme")
    if scheme is None or method.startswith("modelopt"):
        return None
    if method == "fp8" and isinstance(scheme, str):  # AutoFP8, Quark
        scheme = {"type": "float", "dynamic": {"static": False, "dynamic": True}.get(scheme, scheme)}
    if not isinstance(scheme, dict):
        raise CheckpointError(f"{file}: kv_cache_scheme: `{scheme}` is not an object", WITHOUT_SCALES)
    return _declaration(file, scheme)


def _declaration(file: Path, scheme: dict[str, Any]) -> Declaration | None:
    """The fields that are left out mean what they mean in compressed-tensors' QuantizationArgs."""
    dynamic, symmetric = scheme.get("dynamic") or False, scheme.get("symmetric", True)
    if dynamic is True or dynamic == "local":
        log.info("%s: kv_cache_scheme is dynamic: there are no scales to read", file)
        return None
    kind = str(scheme.get("type", "int")).lower(), scheme.get("num_bits", 8)
    strategy = scheme.get("strategy") or "tensor"
    name = next((name for name, known in _SCHEMES.items() if known == kind), None)
    if dynamic is not False:
        raise _refused(file, f"dynamic `{dynamic}` (have true, false, local)")
    if name is None:
        raise _refused(file, f"type `{kind[0]}` with {kind[1]} bits (have float with 8, int with 8)")
    if not isinstance(strategy, str) or strategy.lower() not in _STRATEGIES:
        raise _refused(file, f"strategy `{strategy}` (have {', '.join(_STRATEGIES)})")
    if scheme.get("group_size") not in (None, 0, -1):
        raise _refused(file, f"group_size {scheme['group_size']} (scales per layer or per head only)")
    if not isinstance(symmetric, bool) or (name == FP8 and not symmetric):
        raise _refused(file, f"symmetric `{symmetric}` with type `{kind[0]}`")
    return Declaration(file, name, f"{_METHOD} kv_cache_scheme", symmetric, _STRATEGIES[strategy.lower()])


def _refused(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file}: kv_cache_scheme: cannot use {what}", WITHOUT_SCALES)


def compressed_tensors_config(scales: KVScales) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint in which nothing but the cache is quantized."""
    kind, bits = _SCHEMES[scales.scheme]
    scheme = {
        "num_bits": bits,
        "type": kind,
        "strategy": "attn_head" if scales.per_head else "tensor",
        "symmetric": scales.symmetric,
        "dynamic": False,
    }
    if not scales.symmetric:
        scheme["zp_dtype"] = "torch.float32"
    return {
        "quant_method": _METHOD,
        "format": "dense",
        "quantization_status": "frozen",
        "config_groups": {},
        "ignore": [],
        "kv_cache_scheme": scheme,
    }


def write_compressed_tensors(folder: Path, scales: KVScales) -> None:
    """Write kv_scales.safetensors, list it in the index if there is one, and declare it in config.json, keeping all
    else that is there. Zero points are fp32, so that a float zero survives. Raises CheckpointError if the weights are
    quantized by another method, which has no place for the declaration, or if a file cannot be written."""
    file = folder / "config.json"
    config, ours = read_json_if_there(file), compressed_tensors_config(scales)
    there = config.get("quantization_config") or ours
    if not isinstance(there, dict) or there.get("quant_method") != _METHOD:
        method = there.get("quant_method") if isinstance(there, dict) else there
        raise CheckpointError(
            f"{file}: is quantized by `{method}`, so it cannot declare a {_METHOD} cache",
            hint="write the scales beside the unquantized checkpoint",
        )
    config["quantization_config"] = there | {"kv_cache_scheme": ours["kv_cache_scheme"]}
    replace_files({**new_tensor_files(folder, _tensors(scales)), file: json_bytes(config)})


def _tensors(scales: KVScales) -> dict[str, np.ndarray]:
    heads, shape = (scales.kv_heads, (-1, 1, 1)) if scales.per_head else (1, (1,))
    tensors: dict[str, np.ndarray] = {}
    for number, layer in enumerate(scales.layers):
        for name, side in layer.sides:
            prefix = f"model.layers.{number}.self_attn.{name}"
            tensors[f"{prefix}_scale"] = side.scale[:heads].reshape(shape)
            if not scales.symmetric:
                zero = np.zeros_like(side.scale) if side.zero is None else side.zero
                tensors[f"{prefix}_zero_point"] = (-zero / side.scale)[:heads].reshape(shape)
    return tensors
