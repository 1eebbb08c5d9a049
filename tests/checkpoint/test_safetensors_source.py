"""Folders written by transformers, whole and damaged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.base.errors import CheckpointError, OctavoError
from octavo.checkpoint import open_checkpoint, staging
from octavo.checkpoint.safetensors import read_safetensors_header
from octavo.models.families import FAMILIES, weight_shapes

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
SWITCHES = {"llama": {"attention_bias": True, "mlp_bias": True}, "qwen3": {"head_dim": 24}, "mistral": {"head_dim": 20}}


def build(family: str, **changes):
    import transformers

    config = getattr(transformers, family.capitalize() + "Config")(**SMALL, **SWITCHES.get(family, {}), **changes)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    build("llama").to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(plain, tmp_path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "model"))


def rewrite(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_same_weights_as_transformers(family, tied, tmp_path):
    model = build(family, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    source = open_checkpoint(str(tmp_path))
    source.check()
    theirs = model.state_dict()
    assert set(source.names()) == set(theirs) - ({"lm_head.weight"} if tied else set())
    for name, shape in weight_shapes(source.spec).items():
        assert tuple(theirs[name].shape) == shape
        torch.testing.assert_close(source.load(name), theirs[name], rtol=0, atol=0)
    assert source.spec.dtype == "float32"
    assert source.weight_bytes == 4 * source.spec.parameters


def test_stored_dtype_and_name(plain):
    source = open_checkpoint(str(plain))
    source.check()
    assert (source.kind, source.name, source.spec.dtype) == ("safetensors", plain.name, "bfloat16")
    assert source.load("model.norm.weight").dtype == torch.bfloat16


def test_old_style_config(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "bfloat16"}
    del config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(str(folder)).spec.rope.kind == "linear"


def test_missing_weights_are_counted(folder):
    rewrite(folder, lambda w: [w.pop(name) for name in list(w) if "mlp" in name and name.endswith("weight")])
    with pytest.raises(CheckpointError, match=r"6 weights \(model.layers.0.mlp.gate_proj.weight,.*\.\.\.\) missing"):
        open_checkpoint(str(folder)).check()


def test_extra_and_ignorable_tensors(folder):
    rewrite(folder, lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    open_checkpoint(str(folder)).check()
    rewrite(folder, lambda w: w.update({"model.layers.2.extra.weight": torch.ones(8)}))
    with pytest.raises(CheckpointError, match=r"1 tensor \(model.layers.2.extra.weight\)"):
        open_checkpoint(str(folder)).check()


def test_wrong_shape_and_type(folder):
    rewrite(folder, lambda w: w.update({"model.norm.weight": torch.ones(65)}))
    with pytest.raises(CheckpointError, match=r"model.norm.weight \(65, expected 64\)"):
        open_checkpoint(str(folder)).check()
    rewrite(folder, lambda w: w.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match="stored as I8"):
        open_checkpoint(str(folder)).check()
    with pytest.raises(CheckpointError, match=r"no\.such"):
        open_checkpoint(str(folder)).load("no.such.weight")


def test_truncated_anywhere(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for kept in [0, 1, 7, 8, 9, 100, 1000, len(whole) // 2, len(whole) - 1]:
        file.write_bytes(whole[:kept])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            open_checkpoint(str(folder))


def test_flipped_header_bytes_never_trace_back(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for at in range(0, 1500, 7):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        try:
            open_checkpoint(str(folder)).check()
        except OctavoError:
            continue


def test_missing_shard_is_named(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"shard model-00002-of-00002\.safetensors is missing"):
        open_checkpoint(str(folder))
    index["weight_map"].pop("b")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="such as a"):
        open_checkpoint(str(folder))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(CheckpointError, match="not a file of this folder"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"model_type": "llama"}', "\xff"])
def test_bad_config_names_the_file(folder, content):
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(str(folder))


def test_pickles_are_refused(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(CheckpointError, match="unpickling can run any code"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    "leaf",
    ["k_scale", "q_scale", "v_zero_point", "kv_scale", "k_proj.k_scale", "v_proj.v_scale", "q_proj.output_scale",
     "k_proj.output_scale", "v_proj.output_zero_point"],
)  # fmt: skip
def test_kv_scales_beside_the_weights(folder, leaf):
    rewrite(folder, lambda w: w.update({f"model.layers.0.self_attn.{leaf}": torch.ones(1)}))
    open_checkpoint(str(folder)).check()


def test_a_scale_of_weights_is_no_kv_scale(folder):
    rewrite(folder, lambda w: w.update({"model.layers.0.self_attn.k_proj.weight_scale": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"k_proj\.weight_scale"):
        open_checkpoint(str(folder)).check()


def test_a_tensor_read_in_pieces_is_the_stored_one(plain, monkeypatch):
    source = open_checkpoint(str(plain))
    name = "model.layers.1.mlp.gate_proj.weight"
    stored = source._stored[name]
    monkeypatch.setattr(staging, "_PIECE", 1000)  # 96 x 64 in bfloat16 are 12.3 of them
    with torch.inference_mode():
        read = staging.read_tensor(stored.file, stored.begin, stored.shape, torch.bfloat16, "cpu")
    assert torch.equal(read, source.load(name))


def test_a_file_that_ends_early_is_named_when_read_in_pieces(folder):
    source = open_checkpoint(str(folder))
    stored = source._stored["model.norm.weight"]
    with stored.file.open("r+b") as opened:
        opened.truncate(stored.begin + 4)
    with pytest.raises(CheckpointError, match=f"safetensors: ends at byte {stored.begin + 4}"):
        staging.read_tensor(stored.file, stored.begin, stored.shape, torch.bfloat16, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_come_to_a_gpu_in_pieces(tmp_path, plain):
    source = open_checkpoint(str(plain))
    big = torch.randn(3000, 4000).to(torch.bfloat16)
    save_file({"big": big}, tmp_path / "big.safetensors")
    stored = read_safetensors_header(tmp_path / "big.safetensors")["big"]
    read = staging.read_tensor(stored.file, stored.begin, stored.shape, torch.bfloat16, "cuda")
    assert torch.equal(read.cpu(), big)
    assert source.load_on("model.norm.weight", "cuda").is_cuda
