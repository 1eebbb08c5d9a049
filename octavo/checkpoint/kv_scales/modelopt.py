"""NVIDIA ModelOpt: `kv_cache_quant_algo` in hf_quant_config.json (newer exports repeat it in config.json),
`k_proj.k_scale` and `v_proj.v_scale` per layer. One scale per layer, scale = largest |x| / 448 for fp8, no zero points.
"""

from pathlib import Path
from typing import Any

import numpy as np

from octavo.base.errors import BadValue, CheckpointError
from octavo.checkpoint.jsonfile import read_json_if_there
from octavo.checkpoint.kv_scales.declared import WITHOUT_SCALES, Declaration
from octavo.checkpoint.kv_scales.files import json_bytes, replace_files
from octavo.checkpoint.kv_scales.tensors import new_tensor_files
from octavo.checkpoint.kv_scales.values import FP8, INT8_STATIC, KVScales, shared_by_heads

__all__ = ["modelopt_declarations", "write_modelopt"]

_FILE = "hf_quant_config.json"
_ALGOS = {"FP8": FP8, "INT8": INT8_STATIC}
_KINDS = {"FP8": "float", "INT8": "int"}


def modelopt_declarations(folder: Path) -> list[Declaration]:
    """What hf_quant_config.json and config.json declare, in this order; an empty list if neither declares anything.
    Raises CheckpointError on cache formats that have no counterpart here (NVFP4 and its kin)."""
    said = [(folder / _FILE, _object(folder / _FILE, "quantization").get("kv_cache_quant_algo"))]
    config = _object(folder / "config.json", "quantization_config")
    if str(config.get("quant_method", "")).startswith("modelopt"):
        said.append((folder / "config.json", _algo_of_scheme(config.get("kv_cache_scheme"))))
    return [_declaration(file, algo) for file, algo in said if algo]


def _object(file: Path, key: str) -> dict[str, Any]:
    content = read_json_if_there(file).get(key) or {}
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: {key} is not an object", hint="download the file again")
    return content


def _algo_of_scheme(scheme: Any) -> Any:
    """config.json has an object for fp8, and the algorithm's name for all others."""
    if not isinstance(scheme, dict):
        return scheme
    kind = scheme.get("type"), scheme.get("num_bits")
    return next((algo for algo, known in _KINDS.items() if kind == (known, 8)), f"{kind[0]} with {kind[1]} bits")


def _declaration(file: Path, algo: Any) -> Declaration:
    scheme = _ALGOS.get(str(algo).upper())
    if scheme is None:
        raise CheckpointError(f"{file}: cannot use a KV cache of `{algo}` (have {', '.join(_ALGOS)})", WITHOUT_SCALES)
    return Declaration(file, scheme, "ModelOpt kv_cache_quant_algo")


def write_modelopt(folder: Path, scales: KVScales, reduce: bool = False) -> None:
    """Write kv_scales.safetensors, list it in the index if there is one, and declare it in hf_quant_config.json (and
    in config.json if ModelOpt quantized the weights), keeping all else. The format has one scale per layer: heads that
    differ are a BadValue, unless `reduce`, which takes the largest. So are zero points. Raises CheckpointError if a
    file cannot be written."""
    if not scales.symmetric:
        raise BadValue("ModelOpt has no zero points for the KV cache", hint="write compressed-tensors")
    algo = next(algo for algo, scheme in _ALGOS.items() if scheme == scales.scheme)
    quantization = {"quant_algo": None} | _object(folder / _FILE, "quantization") | {"kv_cache_quant_algo": algo}
    declaration = {"producer": {"name": "modelopt"}} | read_json_if_there(folder / _FILE)
    files = new_tensor_files(folder, _tensors(scales, reduce))
    files[folder / _FILE] = json_bytes(declaration | {"quantization": quantization})
    there = _object(folder / "config.json", "quantization_config")
    if str(there.get("quant_method", "")).startswith("modelopt"):
        scheme = {"dynamic": False, "num_bits": 8, "type": _KINDS[algo]}
        config = read_json_if_there(folder / "config.json")
        config["quantization_config"] = there | {"kv_cache_scheme": scheme}
        files[folder / "config.json"] = json_bytes(config)
    replace_files(files)


def _tensors(scales: KVScales, reduce: bool) -> dict[str, np.ndarray]:
    return {
        f"model.layers.{number}.self_attn.{name}_proj.{name}_scale": shared_by_heads(
            side, f"layer {number}, {name}", reduce
        ).scale.reshape(())
        for number, layer in enumerate(scales.layers)
        for name, side in layer.sides
    }
