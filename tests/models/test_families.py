"""Configs of Hugging Face, old style and new, into specs."""

import json
from typing import Any

import pytest

from octavo.base.errors import CheckpointError, UnknownChoice
from octavo.models.families import FAMILIES, ROPE_KINDS, spec_of_config, weight_shapes

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0},
}


def config(**changes: Any) -> dict[str, Any]:
    return {"model_type": "llama", **SMALL, "max_position_embeddings": 256, **changes}


def transformers_class(family: str) -> Any:
    import transformers

    return getattr(transformers, family.capitalize() + "Config")


@pytest.mark.parametrize("family", FAMILIES)
def test_agrees_with_transformers(family):
    theirs = transformers_class(family)(**SMALL, tie_word_embeddings=True, eos_token_id=[7, 9], rms_norm_eps=1e-4)
    spec = spec_of_config(json.loads(theirs.to_json_string()))
    assert (spec.layers, spec.width, spec.mlp_width, spec.vocab_size) == (2, 64, 96, 100)
    assert (spec.heads, spec.kv_heads) == (4, 2)
    assert spec.head_dim == getattr(theirs, "head_dim", 16)
    assert spec.max_position == theirs.max_position_embeddings
    assert spec.rope.theta == theirs.rope_parameters["rope_theta"]
    assert spec.norm_eps == 1e-4
    assert spec.tied_embeddings
    assert spec.eos_token_ids == (7, 9)


@pytest.mark.parametrize("family", FAMILIES)
def test_absent_fields_take_transformers_defaults(family):
    required = {name: value for name, value in SMALL.items() if name != "num_key_value_heads"} | {
        "num_attention_heads": 32,
        "hidden_size": 256,
    }
    spec, theirs = spec_of_config({"model_type": family, **required}), transformers_class(family)(**required)
    assert spec.kv_heads == theirs.num_key_value_heads
    assert spec.head_dim == getattr(theirs, "head_dim", 8)
    assert spec.max_position == theirs.max_position_embeddings
    assert spec.windows == ((theirs.sliding_window,) * 2 if getattr(theirs, "sliding_window", None) else ())
    assert spec.norm_eps == theirs.rms_norm_eps
    assert spec.tied_embeddings == theirs.tie_word_embeddings


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("style", ["type", "rope_type", "rope_parameters"])
def test_rope_styles_mean_the_same(kind, style):
    if style == "rope_parameters":
        given = {"rope_parameters": {"rope_type": kind, "rope_theta": 5e5, **SCALINGS[kind]}}
    else:
        given = {"rope_theta": 5e5, "rope_scaling": {style: kind, **SCALINGS[kind]}}
    rope = spec_of_config(config(**given)).rope
    assert (rope.kind, rope.theta, rope.rotary_dim) == (kind, 5e5, 16)
    assert rope.factor == SCALINGS[kind].get("factor", 1.0)
    assert rope.original_max_position == {"default": 0, "llama3": 32, "yarn": 64}.get(kind, 256)


def test_rope_details():
    yarn = {"rope_type": "yarn", "original_max_position_embeddings": 64, "mscale": 1, "truncate": False}
    rope = spec_of_config(config(rope_scaling=yarn, partial_rotary_factor=0.5)).rope
    assert (rope.factor, rope.mscale, rope.truncate, rope.rotary_dim) == (4.0, 1.0, False, 8)
    assert spec_of_config(config(rope_scaling=None, rope_theta=None)).rope.theta == 10000.0
    without = spec_of_config(config(rope_scaling={"type": "yarn", "factor": 2.0})).rope
    assert without.original_max_position == 256
    assert set(SCALINGS) == set(ROPE_KINDS)


def test_switches_of_families():
    biased = spec_of_config(config(attention_bias=True, mlp_bias=True))
    assert (biased.qkv_bias, biased.out_bias, biased.mlp_bias) == (True, True, True)
    qwen2 = spec_of_config(config(model_type="qwen2"))
    assert (qwen2.qkv_bias, qwen2.out_bias, qwen2.qk_norm) == (True, False, False)
    qwen3 = spec_of_config(config(model_type="qwen3"))
    assert (qwen3.qkv_bias, qwen3.qk_norm, qwen3.head_dim) == (False, True, 128)
    assert spec_of_config(config(model_type="qwen3", attention_bias=True)).out_bias
    assert spec_of_config(config(head_dim=24)).head_dim == 24
    assert spec_of_config(config(head_dim=None)).head_dim == 16
    assert spec_of_config(config(torch_dtype="float16")).dtype == "float16"
    assert spec_of_config(config(dtype="float32")).dtype == "float32"


def test_windows():
    def windows(**changes: Any) -> tuple[int | None, ...]:
        return spec_of_config(config(num_hidden_layers=3, **changes)).windows

    assert windows(model_type="mistral", sliding_window=32) == (32, 32, 32)
    assert windows(model_type="mistral", sliding_window=None) == ()
    qwen = {"model_type": "qwen2", "sliding_window": 32, "max_window_layers": 2}
    assert windows(**qwen) == ()
    assert windows(**qwen, use_sliding_window=True) == (None, None, 32)
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    assert windows(**qwen, use_sliding_window=True, layer_types=types) == (32, None, 32)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": None}, "`hidden_size` is missing"),
        ({"hidden_size": 0}, "`hidden_size` is 0"),
        ({"hidden_size": "64"}, "`hidden_size` is '64'"),
        ({"hidden_size": True}, "`hidden_size` is True"),
        ({"vocab_size": -5}, "`vocab_size` is -5"),
        ({"num_hidden_layers": 10**9}, "at most"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"hidden_size": 66}, "not a multiple"),
        ({"rms_norm_eps": float("nan")}, "`rms_norm_eps`"),
        ({"hidden_act": "gelu"}, "only silu"),
        ({"tie_word_embeddings": "yes"}, "`tie_word_embeddings`"),
        ({"eos_token_id": "2"}, "`eos_token_id`"),
        ({"torch_dtype": "int8"}, "dtype is `int8`"),
        ({"rope_theta": -1}, "`rope_theta`"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "default, linear, dynamic, llama3, yarn"),
        ({"rope_scaling": {"rope_type": "linear"}}, "`factor` is missing"),
        ({"rope_scaling": "linear"}, "rope parameters"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4, "high_freq_factor": 1}},
            "exceed",
        ),
        ({"partial_rotary_factor": 0.2}, "even part"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["full_attention"]}, "`layer_types`"),
    ],
)
def test_nonsense_is_named(changes, said):
    with pytest.raises(CheckpointError) as caught:
        spec_of_config(config(**changes))
    assert said in str(caught.value)


def test_unknown_model_type_suggests_a_near_one():
    with pytest.raises(UnknownChoice, match="did you mean `qwen3`"):
        spec_of_config(config(model_type="qwen33"))


def test_quantized_cache_is_not_quantized_weights():
    cache_only = {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}, "config_groups": {}}
    assert spec_of_config(config(quantization_config=cache_only)).layers == 2
    with pytest.raises(CheckpointError, match="compressed-tensors"):
        spec_of_config(config(quantization_config=cache_only | {"config_groups": {"group_0": {}}}))


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_add_up(family):
    spec = spec_of_config(config(model_type=family))
    sizes = [shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in weight_shapes(spec).values()]
    assert sum(sizes) == spec.parameters
    assert "lm_head.weight" in weight_shapes(spec)
    assert "lm_head.weight" not in weight_shapes(spec_of_config(config(model_type=family, tie_word_embeddings=True)))
