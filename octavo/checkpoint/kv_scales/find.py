"""What a checkpoint folder declares about its KV cache, whichever tool wrote it."""

from pathlib import Path

from octavo.base.errors import CheckpointError
from octavo.checkpoint.kv_scales.compressed_tensors import compressed_tensors_declaration
from octavo.checkpoint.kv_scales.declared import WITHOUT_SCALES, read_declared
from octavo.checkpoint.kv_scales.modelopt import modelopt_declarations
from octavo.checkpoint.kv_scales.values import KVScales

__all__ = ["find_kv_scales"]


def find_kv_scales(folder: Path, layers: int, kv_heads: int) -> KVScales | None:
    """The scales that config.json or hf_quant_config.json declare; None if neither declares any, or if they are
    dynamic. Weights are not read. Raises CheckpointError if two declarations differ, or if what is declared cannot be
    used, is missing for a layer, or is damaged."""
    found = [compressed_tensors_declaration(folder), *modelopt_declarations(folder)]
    declared = [declaration for declaration in found if declaration is not None]
    if not declared:
        return None
    first = declared[0]
    for other in declared[1:]:
        if other.scheme != first.scheme:
            says = " and ".join(f"{one.file.name} declares {one.scheme}" for one in (first, other))
            raise CheckpointError(f"{folder}: {says} for the KV cache", WITHOUT_SCALES)
    return read_declared(folder, first, layers, kv_heads)
