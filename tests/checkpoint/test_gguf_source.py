"""GGUF files: the right numbers, the right spec, and clear words about damaged files."""

import random
import struct

import gguf
import numpy
import pytest
import torch
from gguf_files import (
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    PYTHON_ONLY_DEQUANTIZES,
    PYTHON_QUANTIZES,
    VOCAB,
    WIDTH,
    metadata,
    random_blocks,
    tensors,
    write,
    write_model,
)

from octavo.base.errors import CheckpointError, OctavoError, UnknownChoice
from octavo.checkpoint import open_checkpoint
from octavo.checkpoint.gguf_header import TENSOR_TYPES, read_header

SHAPES_OF = {"llama": {}, "qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}}


def halves_from_pairs(rows: numpy.ndarray, heads: int) -> numpy.ndarray:
    """The definition, row by row: pair i of a head sits at 2i, 2i+1 in the file, at i, i + D/2 in the model."""
    out = numpy.empty_like(rows)
    width = len(rows) // heads
    for head in range(heads):
        for i in range(width // 2):
            out[head * width + i] = rows[head * width + 2 * i]
            out[head * width + i + width // 2] = rows[head * width + 2 * i + 1]
    return out


@pytest.mark.parametrize("arch", SHAPES_OF)
def test_weights_are_put_back_in_order(arch, tmp_path):
    path = write_model(tmp_path / "m.gguf", arch, **SHAPES_OF[arch])
    source, given = open_checkpoint(str(path)), tensors(**SHAPES_OF[arch])
    source.check()
    spec = source.spec
    assert (spec.family, spec.heads, spec.kv_heads, spec.head_dim) == (arch, HEADS, KV_HEADS, HEAD_DIM)
    assert (spec.vocab_size, spec.max_position, spec.norm_eps, spec.tied_embeddings) == (VOCAB, 128, 1e-5, True)
    assert (spec.qkv_bias, spec.qk_norm, spec.dtype) == (arch == "qwen2", arch == "qwen3", "float32")
    assert source.weight_bytes == 4 * spec.parameters
    for part, ours, heads in (("attn_q", "q_proj", HEADS), ("attn_k", "k_proj", KV_HEADS), ("attn_v", "v_proj", 0)):
        for what in ("weight", "bias") if arch == "qwen2" else ("weight",):
            stored = given[f"blk.1.{part}.{what}"]
            want = halves_from_pairs(stored, heads) if arch == "llama" and heads else stored
            got = source.load(f"model.layers.1.self_attn.{ours}.{what}")
            torch.testing.assert_close(got, torch.from_numpy(want), rtol=0, atol=0)
    torch.testing.assert_close(
        source.load("model.embed_tokens.weight"), torch.from_numpy(given["token_embd.weight"]), rtol=0, atol=0
    )


def test_llama_biases_are_permuted_too(tmp_path):
    path = write_model(tmp_path / "m.gguf", "llama", qkv_bias=True)
    source = open_checkpoint(str(path))
    source.check()
    want = halves_from_pairs(tensors(qkv_bias=True)["blk.0.attn_q.bias"], HEADS)
    assert torch.equal(source.load("model.layers.0.self_attn.q_proj.bias"), torch.from_numpy(want))
    assert (source.spec.qkv_bias, source.spec.out_bias) == (True, False)


@pytest.mark.parametrize("kind", PYTHON_QUANTIZES, ids=lambda kind: kind.name)
def test_types_that_python_writes(kind, tmp_path):
    rows = numpy.random.default_rng(1).standard_normal((VOCAB, WIDTH), numpy.float32)
    stored = gguf.quants.quantize(rows, kind)
    data = {"token_embd.weight": (stored, kind)}
    source = open_checkpoint(str(write_model(tmp_path / "m.gguf", data=data)))
    source.check()
    got = source.load("model.embed_tokens.weight")
    assert torch.equal(got, torch.from_numpy(gguf.quants.dequantize(stored, kind).copy()))
    assert (got - torch.from_numpy(rows)).abs().max() < {"F32": 1e-9, "F16": 2e-3, "BF16": 2e-2}.get(kind.name, 0.5)


@pytest.mark.parametrize("kind", PYTHON_ONLY_DEQUANTIZES, ids=lambda kind: kind.name)
def test_k_quants(kind, tmp_path):
    stored = random_blocks(VOCAB, 256, kind)
    data = {"token_embd.weight": (stored, kind)}
    source = open_checkpoint(str(write_model(tmp_path / "m.gguf", data=data)))
    got = source.load("model.embed_tokens.weight")
    assert torch.equal(got, torch.from_numpy(gguf.quants.dequantize(stored, kind)))
    assert got.isfinite().all()
    assert got.shape == (VOCAB, 256)


def test_sizes_agree_with_the_gguf_package():
    for type_id, ours in TENSOR_TYPES.items():
        theirs = gguf.GGMLQuantizationType(type_id)
        assert (ours.name, (ours.block_items, ours.block_bytes)) == (theirs.name, gguf.GGML_QUANT_SIZES[theirs])


def test_types_we_cannot_read_are_named(tmp_path):
    kind = gguf.GGMLQuantizationType.Q2_K
    data = {"token_embd.weight": (numpy.zeros((VOCAB, 84), numpy.uint8), kind)}
    source = open_checkpoint(str(write_model(tmp_path / "m.gguf", data=data)))
    with pytest.raises(CheckpointError, match=r"`token_embd\.weight` is stored as Q2_K"):
        source.load("model.embed_tokens.weight")


def test_rope_of_metadata(tmp_path):
    def rope(arch: str = "llama", **fields):
        fields = {f"{arch}.rope.{key}": value for key, value in fields.items()}
        return open_checkpoint(str(write_model(tmp_path / "m.gguf", arch, fields=fields))).spec.rope

    linear = rope(**{"scaling.type": "linear", "scaling.factor": 2.5})
    assert (linear.kind, linear.factor) == ("linear", 2.5)
    assert rope(scale_linear=4.0).factor == 4.0
    yarn = {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 32}
    assert (rope(**yarn).kind, rope(**yarn).original_max_position, rope(**yarn).attention_factor) == ("yarn", 32, None)
    assert rope("qwen2", dimension_count=8).rotary_dim == 8
    assert rope(freq_base=500000.0).theta == 500000.0
    for refused in ({"scaling.type": "longrope"}, {**yarn, "scaling.attn_factor": 0.5}, {"dimension_count": 8}):
        with pytest.raises(CheckpointError, match=r"m\.gguf"):
            rope(**refused)


def test_llama3_factors_mean_the_llama3_formula(tmp_path):
    """The converter writes a llama3 scaling as a tensor of divisors; the frequencies must come out the same."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from octavo.models.rope import inverse_frequencies

    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 64
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=HEAD_DIM, rope_scaling=scaling)
    want = LlamaRotaryEmbedding(config).inv_freq
    plain = 1.0 / 10000.0 ** (torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
    data = {"rope_freqs.weight": (plain / want).numpy()}
    source = open_checkpoint(str(write_model(tmp_path / "m.gguf", data=data)))
    source.check()
    assert len(source.spec.rope.freq_factors) == HEAD_DIM // 2
    torch.testing.assert_close(inverse_frequencies(source.spec.rope, 128)[0], want, rtol=1e-6, atol=0)


def test_untied_and_mixed_models(tmp_path):
    data = {"output.weight": numpy.ones((VOCAB, WIDTH), numpy.float32)}
    source = open_checkpoint(str(write_model(tmp_path / "m.gguf", data=data)))
    source.check()
    assert not source.spec.tied_embeddings
    assert source.load("lm_head.weight").sum() == VOCAB * WIDTH
    with pytest.raises(CheckpointError, match="mixtures of experts"):
        open_checkpoint(str(write_model(tmp_path / "m.gguf", fields={"llama.expert_count": 8})))
    per_layer = {"llama.attention.head_count_kv": [2, 1]}
    with pytest.raises(CheckpointError, match="differs between layers"):
        open_checkpoint(str(write_model(tmp_path / "m.gguf", fields=per_layer)))


def test_unknown_architecture_suggests_a_near_one(tmp_path):
    path = write(tmp_path / "m.gguf", "qwen22", metadata("qwen22"), {})
    with pytest.raises(UnknownChoice, match="did you mean `qwen2`"):
        open_checkpoint(str(path))


def test_missing_metadata_and_tensors_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"`llama\.block_count` is missing"):
        open_checkpoint(str(write_model(tmp_path / "m.gguf", fields={"llama.block_count": None})))
    source = open_checkpoint(str(write_model(tmp_path / "m.gguf", data={"blk.1.ffn_up.weight": None})))
    with pytest.raises(CheckpointError, match=r"1 weight \(model\.layers\.1\.mlp\.up_proj\.weight\) missing"):
        source.check()
    extra = {"blk.0.attn_sinks.weight": numpy.ones(32, numpy.float32)}
    with pytest.raises(CheckpointError, match="attn_sinks"):
        open_checkpoint(str(write_model(tmp_path / "m.gguf", data=extra))).check()
    wrong = {"output_norm.weight": numpy.ones(32, numpy.float32)}
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight \(32, expected 64\)"):
        open_checkpoint(str(write_model(tmp_path / "m.gguf", data=wrong))).check()


def test_truncated_anywhere(tmp_path):
    path = write_model(tmp_path / "m.gguf", fields={"tokenizer.ggml.tokens": [f"t{i}" for i in range(VOCAB)]})
    whole = path.read_bytes()
    offsets = [0, 3, 4, 8, 23, 24, *range(25, 6000, 37), len(whole) // 2, len(whole) - 400]
    for kept in offsets:
        path.write_bytes(whole[:kept])
        with pytest.raises(CheckpointError, match=r"m\.gguf"):
            open_checkpoint(str(path))


def test_flipped_bytes_never_trace_back(tmp_path):
    path = write_model(tmp_path / "m.gguf", fields={"tokenizer.ggml.tokens": ["a", "b"]})
    whole = bytearray(path.read_bytes())
    draw = random.Random(0)
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 1, 4])):
            damaged[draw.randrange(3000)] = draw.choice([0, 1, 127, 128, 255, draw.randrange(256)])
        path.write_bytes(damaged)
        try:
            source = open_checkpoint(str(path))
            source.check()
            source.tokenizer()
        except OctavoError:
            continue


def test_absurd_counts_do_not_allocate(tmp_path):
    path = tmp_path / "m.gguf"
    for counts in ((2**60, 1), (1, 2**63), (2**31, 2**31)):
        path.write_bytes(struct.pack("<4sIQQ99x", b"GGUF", 3, *counts))
        with pytest.raises(CheckpointError, match="cannot fit in the file"):
            read_header(path)
    for start, said in ((b"GGML" + bytes(40), "not a GGUF file"), (b"GGUF\0\0\0\3" + bytes(40), "big-endian")):
        path.write_bytes(start)
        with pytest.raises(CheckpointError, match=said):
            read_header(path)


OPTIONAL = ("attention.sliding_window", "expert_count", "rope.scaling.type", "rope.scaling.factor", "vocab_size")


@pytest.mark.parametrize("value", ["x", "", 0, 2**32 - 1, 0.5, float("nan"), True, [1, 2], ["a"]], ids=repr)
def test_metadata_of_any_type_never_traces_back(value, tmp_path):
    for key in [*metadata("llama"), *(f"llama.{name}" for name in OPTIONAL), "general.alignment", "split.count"]:
        path = write_model(tmp_path / "m.gguf", fields={"tokenizer.ggml.tokens": ["a"]} | {key: value})
        try:
            source = open_checkpoint(str(path))
            source.check()
        except OctavoError:
            continue
    for name in ("model", "tokens", "token_type", "scores", "merges", "pre", "eos_token_id", "add_bos_token"):
        tokenizer = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b"]}
        path = write_model(tmp_path / "m.gguf", fields=tokenizer | {f"tokenizer.ggml.{name}": value})
        try:
            open_checkpoint(str(path)).tokenizer().encode("ab")
        except OctavoError:
            continue
