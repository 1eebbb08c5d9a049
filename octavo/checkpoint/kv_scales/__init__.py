"""KV-cache scales that come with a checkpoint, read and written. Meaning everywhere: x ~ stored * scale (+ zero).

compressed_tensors   config.json `kv_cache_scheme`, one scale per layer or per head       llm-compressor, vLLM
modelopt             hf_quant_config.json `kv_cache_quant_algo`, one scale per layer      NVIDIA ModelOpt
past_kv_scale        raw fp32 files, one per layer and tensor-parallel rank               LMDeploy / TurboMind, 2023
"""

from octavo.checkpoint.kv_scales.compressed_tensors import compressed_tensors_config, write_compressed_tensors
from octavo.checkpoint.kv_scales.find import find_kv_scales
from octavo.checkpoint.kv_scales.modelopt import write_modelopt
from octavo.checkpoint.kv_scales.past_kv_scale import read_past_kv_scales, write_past_kv_scales
from octavo.checkpoint.kv_scales.values import FP8, INT8_STATIC, KVScales, LayerScales, SideScales

__all__ = [
    "FP8",
    "INT8_STATIC",
    "KVScales",
    "LayerScales",
    "SideScales",
    "compressed_tensors_config",
    "find_kv_scales",
    "read_past_kv_scales",
    "write_compressed_tensors",
    "write_modelopt",
    "write_past_kv_scales",
]
