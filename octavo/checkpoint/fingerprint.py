"""Which weights these are: a digest of the model's shape and of a sample of its numbers."""

import dataclasses
import hashlib
import json

from octavo.checkpoint.source import Source

__all__ = ["fingerprint"]

_NUMBERS = 65536


def fingerprint(source: Source) -> str:
    """sha256 hex over the spec and the first and last layers' norms and key projections, as stored."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(source.spec), sort_keys=True, default=str).encode())
    for layer in sorted({0, source.spec.layers // 2, source.spec.layers - 1}):
        for name in ("input_layernorm", "self_attn.k_proj", "self_attn.v_proj"):
            tensor = source.load(f"model.layers.{layer}.{name}.weight").float().flatten()[:_NUMBERS]
            digest.update(tensor.contiguous().numpy().tobytes())
        if source.spec.qkv_bias:
            digest.update(source.load(f"model.layers.{layer}.self_attn.k_proj.bias").float().numpy().tobytes())
    return digest.hexdigest()
