"""The spec that the metadata of a GGUF file describes, by way of the Hugging Face config that would say the same."""

from dataclasses import dataclass, replace
from struct import unpack_from
from typing import Any

from octavo.base.errors import CheckpointError
from octavo.base.table import Table
from octavo.checkpoint.gguf_header import GGUFHeader, LazyArray
from octavo.models.families import spec_of_config
from octavo.models.spec import ModelSpec, RopeSpec

__all__ = ["ARCHITECTURES", "Architecture", "read_spec"]


@dataclass(frozen=True)
class Architecture:
    """`permuted`: rows of q and k are stored for rotary pairs (0,1), (2,3), ... instead of (0,D/2), (1,D/2+1), ..."""

    permuted: bool


ARCHITECTURES: Table[Architecture] = Table(
    "GGUF architecture",
    {
        "llama": Architecture(permuted=True),
        "qwen2": Architecture(permuted=False),
        "qwen3": Architecture(permuted=False),
    },
)

_CONFIG_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_FACTORS = "rope_freqs.weight"
_DTYPES = {"F32": "float32", "F16": "float16"}


def read_spec(header: GGUFHeader, names: set[str]) -> ModelSpec:
    """The spec from the metadata, and from which canonical `names` there are. Raises CheckpointError, UnknownChoice."""
    arch = header.metadata.get("general.architecture")
    if not isinstance(arch, str):
        raise CheckpointError(f"{header.path}: `general.architecture` is missing", hint="is this a language model?")
    arch = ARCHITECTURES.resolve(arch)
    if header.metadata.get("split.count", 0) not in (0, 1):
        raise CheckpointError(
            f"{header.path}: split GGUF files are not supported", hint="join them: gguf-split --merge"
        )
    try:
        spec = spec_of_config(_config(header, arch, names))
    except CheckpointError as error:
        raise CheckpointError(f"{header.path}: {error.message}", error.hint) from None
    window = _number(header, f"{arch}.attention.sliding_window", 0)
    if not isinstance(window, int) or window < 0:
        raise CheckpointError(f"{header.path}: `{arch}.attention.sliding_window` is {window!r}")
    if ARCHITECTURES[arch].permuted and spec.rope.rotary_dim != spec.head_dim:
        raise CheckpointError(
            f"{header.path}: {arch} with {spec.rope.rotary_dim} of {spec.head_dim} dimensions rotated"
        )
    return replace(
        spec,
        rope=replace(spec.rope, freq_factors=_freq_factors(header, spec.rope)),
        qkv_bias="model.layers.0.self_attn.q_proj.bias" in names,
        out_bias="model.layers.0.self_attn.o_proj.bias" in names,
        mlp_bias="model.layers.0.mlp.down_proj.bias" in names,
        windows=(window,) * spec.layers if window else (),
    )


def _number(header: GGUFHeader, key: str, default: Any = None) -> Any:
    """A scalar of the metadata; float32 ones as the shortest decimal (1e-05, not 9.999999747378752e-06)."""
    value = header.metadata.get(key, default)
    if isinstance(value, LazyArray):
        items = value.decode() if value.count else [default]
        if any(item != items[0] for item in items):
            raise CheckpointError(f"{header.path}: `{key}` differs between layers, which is not supported")
        value = items[0]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _config(header: GGUFHeader, arch: str, names: set[str]) -> dict[str, Any]:
    """The Hugging Face config that says the same as the metadata."""
    get = {key: _number(header, f"{arch}.{key}") for key in _CONFIG_KEYS}
    absent = [f"{arch}.{key}" for key, value in get.items() if value is None]
    if absent:
        raise CheckpointError(f"metadata `{absent[0]}` is missing")
    if _number(header, f"{arch}.expert_count", 0):
        raise CheckpointError(f"{arch} with `expert_count`: mixtures of experts are not supported")
    key_length, value_length = (_number(header, f"{arch}.attention.{side}_length") for side in ("key", "value"))
    if key_length != (key_length if value_length is None else value_length):
        raise CheckpointError(
            f"keys have {key_length} and values {value_length} dimensions per head; expected the same"
        )
    config: dict[str, Any] = {_CONFIG_KEYS[key]: value for key, value in get.items()}
    width, heads = config["hidden_size"], config["num_attention_heads"]
    plain = all(isinstance(value, int) and value > 0 for value in (width, heads, key_length or 1))
    head_dim = (key_length or width // heads) if plain else None
    rotary_dim = _number(header, f"{arch}.rope.dimension_count", head_dim)
    rotated = 1.0
    if head_dim and isinstance(rotary_dim, int) and rotary_dim != head_dim:
        rotated = (rotary_dim + 0.5) / head_dim  # readers round down
    embedding = header.tensors.get("token_embd.weight")
    vocab = embedding.shape[0] if embedding else _number(header, f"{arch}.vocab_size")
    return config | {
        "model_type": arch,
        "head_dim": key_length,
        "num_key_value_heads": _number(header, f"{arch}.attention.head_count_kv", heads),
        "vocab_size": vocab,
        "hidden_act": "silu",
        "tie_word_embeddings": "lm_head.weight" not in names,
        "rope_theta": _number(header, f"{arch}.rope.freq_base", 10000.0),
        "partial_rotary_factor": rotated,
        "rope_scaling": _rope_scaling(header, arch),
        "bos_token_id": _number(header, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _number(header, "tokenizer.ggml.eos_token_id"),
        "dtype": _DTYPES.get(embedding.type.name if embedding and embedding.type else "", "bfloat16"),
    }


def _rope_scaling(header: GGUFHeader, arch: str) -> dict[str, Any]:
    def get(key: str) -> Any:
        return _number(header, f"{arch}.rope.scaling.{key}")

    legacy = _number(header, f"{arch}.rope.scale_linear")
    kind = get("type") or ("linear" if legacy else "none")
    if kind == "none":
        return {"rope_type": "default"}
    if kind == "linear":
        return {"rope_type": "linear", "factor": get("factor") or legacy}
    scaling = {
        "rope_type": kind,
        "factor": get("factor"),
        "original_max_position_embeddings": get("original_context_length"),
        "beta_fast": get("yarn_beta_fast"),
        "beta_slow": get("yarn_beta_slow"),
    }
    attention_factor = get("attn_factor") or get("yarn_attn_factor") or 1.0
    if attention_factor != 1.0:
        raise CheckpointError(f"`{arch}.rope.scaling` changes the attention factor ({attention_factor}), not supported")
    return scaling


def _freq_factors(header: GGUFHeader, rope: RopeSpec) -> tuple[float, ...]:
    """The divisors of the inverse frequencies (how a llama3 scaling is written), if the file has them."""
    info = header.tensors.get(_FACTORS)
    if info is None:
        return ()
    if info.shape != (rope.rotary_dim // 2,) or info.type is None or info.type.name != "F32":
        raise CheckpointError(f"{header.path}: `{_FACTORS}` is not {rope.rotary_dim // 2} float32 numbers")
    if rope.kind not in ("default", "linear"):
        raise CheckpointError(f"{header.path}: `{_FACTORS}` together with {rope.kind} scaling is not supported")
    factors = unpack_from(f"<{info.shape[0]}f", header.data, info.start)
    if not all(0 < factor < float("inf") for factor in factors):
        raise CheckpointError(f"{header.path}: `{_FACTORS}` holds numbers that are not positive")
    return factors
