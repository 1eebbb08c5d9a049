"""The families a dense decoder serves: `model_type` -> reader of a Hugging Face config, and the weights it implies.

Pure: no torch, no transformers, so that `octavo plan` reads a config.json in milliseconds. Where a config leaves a
field out, the value is the one transformers would take.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from octavo.base.errors import CheckpointError
from octavo.base.table import Table
from octavo.models.spec import ModelSpec, RopeSpec

__all__ = ["DTYPES", "FAMILIES", "ROPE_KINDS", "spec_of_config", "weight_shapes"]

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
DTYPES = ("float32", "float16", "bfloat16")

Config = Mapping[str, Any]
_MISSING = object()
_MOST_LAYERS = 10_000


def spec_of_config(config: Config) -> ModelSpec:
    """The spec a Hugging Face config describes. Raises UnknownChoice for an unknown `model_type`, CheckpointError for a
    field that is missing or cannot be (named, with its value)."""
    if not isinstance(config, Mapping):
        raise CheckpointError(f"config: expected an object of fields, got {type(config).__name__}")
    return FAMILIES[str(_field(config, "model_type", str))](config)


def _field(config: Config, name: str, kind: type, default: Any = _MISSING, least: float | None = None) -> Any:
    """`config[name]` as `kind`; None counts as absent. `least` is the smallest value allowed."""
    value = config.get(name)
    if value is None:
        if default is _MISSING:
            raise CheckpointError(f"config: `{name}` is missing", hint="is this the config.json of a language model?")
        return default
    wanted: tuple[type, ...] = (int, float) if kind is float else (kind,)
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise CheckpointError(f"config: `{name}` is {value!r}; expected {kind.__name__}")
    if least is not None and not least <= value < float("inf"):
        raise CheckpointError(f"config: `{name}` is {value!r}; expected a number of at least {least}")
    return kind(value)


def _count(config: Config, name: str, default: Any = _MISSING) -> int:
    return _field(config, name, int, default, least=1)


def _positive(config: Config, name: str, default: Any = _MISSING) -> Any:
    value = _field(config, name, float, default)
    if value is not None and not 0 < value < float("inf"):
        raise CheckpointError(f"config: `{name}` is {value!r}; expected a positive number")
    return value


def _switch(config: Config, name: str, default: bool = False) -> bool:
    return _field(config, name, bool, default)


def _token_ids(config: Config, name: str) -> tuple[int, ...]:
    value = config.get(name)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise CheckpointError(f"config: `{name}` is {value!r}; expected a token id or a list of them")
    return tuple(dict.fromkeys(i for i in ids if i >= 0))


def _dtype(config: Config) -> str:
    name = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    if name not in DTYPES:
        raise CheckpointError(f"config: dtype is `{name}` (have {', '.join(DTYPES)})")
    return name


def _rope(config: Config, head_dim: int, max_position: int) -> RopeSpec:
    """From `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling`; formulas: transformers'
    modeling_rope_utils."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise CheckpointError(f"config: the rope parameters are {given!r}; expected an object of fields")
    given = {"rope_theta": config.get("rope_theta"), "partial_rotary_factor": config.get("partial_rotary_factor")} | {
        name: value for name, value in given.items() if value is not None
    }
    kind = str(given.get("rope_type", given.get("type", "default")))
    if kind not in ROPE_KINDS:
        raise CheckpointError(f"config: rope type `{kind}` is not supported (have {', '.join(ROPE_KINDS)})")
    if any(isinstance(value, Mapping) for value in given.values()):
        raise CheckpointError("config: the rope parameters differ between layer types, which is not supported")
    rotary_dim = int(head_dim * _positive(given, "partial_rotary_factor", 1.0))
    if rotary_dim % 2 or not 2 <= rotary_dim <= head_dim:
        raise CheckpointError(f"config: {rotary_dim} of {head_dim} head dimensions are rotated; expected an even part")
    rope = RopeSpec(theta=_positive(given, "rope_theta", 10000.0), kind=kind, rotary_dim=rotary_dim)
    return _scaled_rope(rope, given, config, max_position) if kind != "default" else rope


def _scaled_rope(rope: RopeSpec, given: Config, config: Config, max_position: int) -> RopeSpec:
    original = max_position
    if rope.kind in ("llama3", "yarn"):  # the other formulas never look at the context length of pre-training
        inside = _count(given, "original_max_position_embeddings", max_position)
        original = _count(config, "original_max_position_embeddings", inside)
    required = rope.kind == "llama3"
    low = _positive(given, "low_freq_factor", *(() if required else (1.0,)))
    high = _positive(given, "high_freq_factor", *(() if required else (4.0,)))
    if high <= low:
        raise CheckpointError(f"config: `high_freq_factor` {high} must exceed `low_freq_factor` {low}")
    implied = (max_position / original,) if rope.kind == "yarn" else ()
    return replace(
        rope,
        factor=_positive(given, "factor", *implied),
        original_max_position=original,
        low_freq_factor=low,
        high_freq_factor=high,
        beta_fast=_positive(given, "beta_fast", 32.0),
        beta_slow=_positive(given, "beta_slow", 1.0),
        attention_factor=_positive(given, "attention_factor", None),
        mscale=_field(given, "mscale", float, None),
        mscale_all_dim=_field(given, "mscale_all_dim", float, None),
        truncate=_switch(given, "truncate", True),
    )


def _window(config: Config) -> int | None:
    """Tokens a query sees, itself included. An absent field means 4096, an explicit null no window."""
    return _count(config, "sliding_window", None if "sliding_window" in config else 4096)


def _window_everywhere(config: Config, layers: int) -> tuple[int | None, ...]:
    """Mistral: one window for all layers."""
    window = _window(config)
    return () if window is None else (window,) * layers


def _window_by_layer(config: Config, layers: int) -> tuple[int | None, ...]:
    """Qwen: `layer_types` when given, else the layers from `max_window_layers` on, and only if `use_sliding_window`."""
    window = _window(config)
    if window is None or not _switch(config, "use_sliding_window"):
        return ()
    first = _field(config, "max_window_layers", int, 28, least=0)
    implied = ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]
    types = _field(config, "layer_types", list, implied)
    if len(types) != layers or not set(types) <= {"sliding_attention", "full_attention"}:
        raise CheckpointError(f"config: `layer_types` is {types!r}; expected {layers} sliding_ or full_attention")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _refuse_quantized(config: Config) -> None:
    """A `quantization_config` is fine only if it speaks of the KV cache alone."""
    given = config.get("quantization_config") or {}
    if not isinstance(given, Mapping):
        raise CheckpointError(f"config: `quantization_config` is {given!r}; expected an object of fields")
    cache_only = given.get("kv_cache_scheme") or given.get("kv_cache_quant_algo")
    if given and (not cache_only or given.get("config_groups") or given.get("quant_algo")):
        method = given.get("quant_method", "unnamed")
        raise CheckpointError(
            f"config: the weights are quantized (`quant_method` {method}), which this version cannot read",
            hint="use the unquantized checkpoint, or a GGUF file",
        )


def _head_sizes(config: Config, width: int, kv_heads: int | None, head_dim: int | None) -> tuple[int, int, int]:
    """Query heads, KV heads, width of a head. The arguments stand for absent fields; an explicit null means one KV head
    per query head, and a head width of `width` / heads."""
    heads = _count(config, "num_attention_heads")
    kv_heads = _count(config, "num_key_value_heads", heads if "num_key_value_heads" in config else kv_heads or heads)
    if heads % kv_heads:
        raise CheckpointError(
            f"config: {heads} `num_attention_heads` are not a multiple of {kv_heads} `num_key_value_heads`"
        )
    head_dim = _count(config, "head_dim", None if "head_dim" in config else head_dim)
    if head_dim is None and width % heads:
        raise CheckpointError(f"config: `hidden_size` {width} is not a multiple of `num_attention_heads` {heads}")
    return heads, kv_heads, head_dim or width // heads


def _read(
    config: Config,
    *,
    max_position: int,
    windows: Callable[[Config, int], tuple[int | None, ...]] = lambda config, layers: (),
    biases: Callable[[Config], tuple[bool, bool, bool]] = lambda config: (False, False, False),
    qk_norm: bool = False,
    head_dim: int | None = None,
    kv_heads: int | None = None,
) -> ModelSpec:
    """One reader for all: the arguments are where families differ (defaults of absent fields, biases of q/k/v, output
    and MLP, windows)."""
    _refuse_quantized(config)
    act = _field(config, "hidden_act", str, "silu")
    if act not in ("silu", "swish"):
        raise CheckpointError(f"config: `hidden_act` is `{act}`; only silu is supported")
    layers, width = _count(config, "num_hidden_layers"), _count(config, "hidden_size")
    if layers > _MOST_LAYERS:
        raise CheckpointError(f"config: `num_hidden_layers` is {layers}; expected at most {_MOST_LAYERS}")
    heads, kv_heads, head_dim = _head_sizes(config, width, kv_heads, head_dim)
    max_position = _count(config, "max_position_embeddings", max_position)
    qkv_bias, out_bias, mlp_bias = biases(config)
    return ModelSpec(
        family=str(config["model_type"]),
        layers=layers,
        width=width,
        mlp_width=_count(config, "intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=_count(config, "vocab_size"),
        max_position=max_position,
        rope=_rope(config, head_dim, max_position),
        norm_eps=_positive(config, "rms_norm_eps", 1e-6),
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        tied_embeddings=_switch(config, "tie_word_embeddings"),
        windows=windows(config, layers),
        bos_token_id=next(iter(_token_ids(config, "bos_token_id")), None),
        eos_token_ids=_token_ids(config, "eos_token_id"),
        dtype=_dtype(config),
    )


def _attention_bias(config: Config) -> tuple[bool, bool, bool]:
    attention = _switch(config, "attention_bias")
    return attention, attention, _switch(config, "mlp_bias")


FAMILIES: Table[Callable[[Config], ModelSpec]] = Table(
    "model type",
    {
        "llama": partial(_read, max_position=2048, biases=_attention_bias),
        "mistral": partial(_read, max_position=131072, windows=_window_everywhere, kv_heads=8),
        "qwen2": partial(_read, max_position=32768, windows=_window_by_layer, biases=lambda _: (True, False, False)),
        "qwen3": partial(
            _read, max_position=32768, windows=_window_by_layer, biases=_attention_bias, qk_norm=True, head_dim=128
        ),
    },
)


def weight_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every weight of the model by its Hugging Face name, with its shape ([out, in] for matrices)."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (spec.vocab_size, spec.width)}
    for layer in range(spec.layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _block_shapes(spec).items()}
    shapes["model.norm.weight"] = (spec.width,)
    if not spec.tied_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, spec.width)
    return shapes


def _block_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    linears = {
        "self_attn.q_proj": (queries, spec.width, spec.qkv_bias),
        "self_attn.k_proj": (keys, spec.width, spec.qkv_bias),
        "self_attn.v_proj": (keys, spec.width, spec.qkv_bias),
        "self_attn.o_proj": (spec.width, queries, spec.out_bias),
        "mlp.gate_proj": (spec.mlp_width, spec.width, spec.mlp_bias),
        "mlp.up_proj": (spec.mlp_width, spec.width, spec.mlp_bias),
        "mlp.down_proj": (spec.width, spec.mlp_width, spec.mlp_bias),
    }
    norms = {"input_layernorm": spec.width, "post_attention_layernorm": spec.width}
    if spec.qk_norm:
        norms |= {"self_attn.q_norm": spec.head_dim, "self_attn.k_norm": spec.head_dim}
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (width,) for name, width in norms.items()}
    for name, (rows, columns, bias) in linears.items():
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)
    return shapes
