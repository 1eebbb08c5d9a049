"""KV scales of checkpoints: files as other tools write them, round trips, and what is said when they are damaged."""

import json
import logging
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from octavo.base.errors import BadValue, CheckpointError, OctavoError, UnknownChoice
from octavo.checkpoint.kv_scales import (
    KVScales,
    LayerScales,
    SideScales,
    compressed_tensors_config,
    find_kv_scales,
    read_past_kv_scales,
    write_compressed_tensors,
    write_modelopt,
    write_past_kv_scales,
)

LAYERS, HEADS = 3, 4
CT = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
WEIGHT = "model.embed_tokens.weight"


def f32(*values) -> np.ndarray:
    return np.array(values, np.float32)


def make(scheme="int8-static", per_head=True, asymmetric=False, layers=LAYERS, heads=HEADS) -> KVScales:
    rng = np.random.default_rng(0)

    def side() -> SideScales:
        scale, zero = rng.uniform(0.01, 2, (2, heads if per_head else 1)).astype(np.float32)
        return SideScales(np.resize(scale, heads), np.resize(zero - 1, heads) if asymmetric else None)

    return KVScales(scheme, tuple(LayerScales(side(), side()) for _ in range(layers)), "test")


def assert_same(got: KVScales, want: KVScales, rtol: float = 0) -> None:
    assert got.scheme == want.scheme and len(got.layers) == len(want.layers)
    for mine, theirs in zip(got.layers, want.layers, strict=True):
        for (_, a), (_, b) in zip(mine.sides, theirs.sides, strict=True):
            assert a.scale.dtype == np.float32 and (a.zero is None) == (b.zero is None)
            np.testing.assert_allclose(a.scale, b.scale, rtol=rtol)
            if a.zero is not None and b.zero is not None:
                np.testing.assert_allclose(a.zero, b.zero, rtol=rtol)


def configure(folder: Path, scheme=CT, method="compressed-tensors", file="config.json", **more) -> None:
    content = {"quantization_config": {"quant_method": method, "kv_cache_scheme": scheme, "config_groups": {}, **more}}
    (folder / file).write_text(json.dumps(content))


def modelopt_config(folder: Path, algo: Any = "FP8") -> None:
    quantization = {"quant_algo": "FP8", "kv_cache_quant_algo": algo, "exclude_modules": ["lm_head"]}
    content = {"producer": {"name": "modelopt", "version": "0.29.0"}, "quantization": quantization}
    (folder / "hf_quant_config.json").write_text(json.dumps(content))


def leaves(k="k_scale", v="v_scale", shape=(1,), dtype=np.float32) -> dict[str, np.ndarray]:
    """Scales (layer + 1) / 8 for K, and twice that for V."""
    sides = {k: 0.125} if k == v else {k: 0.125, v: 0.25}
    return {
        f"model.layers.{layer}.self_attn.{leaf}": np.full(shape, (layer + 1) * unit, dtype)
        for layer in range(LAYERS)
        for leaf, unit in sides.items()
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    """A single-file fp8 checkpoint as llm-compressor writes it."""
    configure(tmp_path)
    save_file(leaves() | {WEIGHT: np.ones((8, 2), np.float16)}, tmp_path / "model.safetensors")
    return tmp_path


def change(folder: Path, **by_leaf) -> None:
    """Replace (or, with None, drop) tensors of layer 1 in model.safetensors."""
    tensors = load_file(folder / "model.safetensors")
    for leaf, value in by_leaf.items():
        tensors.pop(name := f"model.layers.1.self_attn.{leaf}", None)
        tensors |= {} if value is None else {name: value}
    save_file(tensors, folder / "model.safetensors")


def find(folder: Path) -> KVScales:
    scales = find_kv_scales(folder, LAYERS, HEADS)
    assert scales is not None
    return scales


def column(scales: KVScales) -> list[tuple[list[float], list[float]]]:
    return [(layer.key.scale.tolist(), layer.value.scale.tolist()) for layer in scales.layers]


EXPECTED = [([0.125 * n] * HEADS, [0.25 * n] * HEADS) for n in (1, 2, 3)]


def save_bf16(tensors: dict[str, np.ndarray], file: Path) -> None:
    """numpy has no bfloat16: the upper halves of fp32, under that name."""
    header, data = {}, b""
    for name, value in tensors.items():
        halves = (value.reshape(-1).view("<u4") >> 16).astype("<u2").tobytes()
        offsets = [len(data), len(data) + len(halves)]
        header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": offsets}
        data += halves
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


# as other tools write them


def test_llm_compressor(folder):
    scales = find(folder)
    assert (scales.scheme, scales.origin) == ("fp8", "compressed-tensors kv_cache_scheme")
    assert column(scales) == EXPECTED and scales.symmetric and not scales.per_head


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, "bfloat16"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_dtypes_and_shapes(folder, dtype, shape):
    if dtype == "bfloat16":
        save_bf16(leaves(shape=shape), folder / "model.safetensors")
    else:
        save_file(leaves(shape=shape, dtype=dtype), folder / "model.safetensors")
    assert column(find(folder)) == EXPECTED


@pytest.mark.parametrize("shape", [(HEADS,), (HEADS, 1, 1)], ids=str)
def test_one_scale_per_head(folder, shape):
    configure(folder, CT | {"strategy": "attn_head", "type": "int"})
    tensors = leaves(shape=shape)
    tensors["model.layers.1.self_attn.k_scale"] = f32(1, 2, 3, 4).reshape(shape)
    save_file(tensors, folder / "model.safetensors")
    scales = find(folder)
    assert scales.scheme == "int8-static" and scales.per_head
    assert scales.layers[1].key.scale.tolist() == [1, 2, 3, 4]


OLDER = {
    "output_scale": ("k_proj.output_scale", "v_proj.output_scale"),
    "kv_scale": ("kv_scale", "kv_scale"),
    "modelopt names": ("k_proj.k_scale", "v_proj.v_scale"),
}


@pytest.mark.parametrize("names", OLDER.values(), ids=OLDER)
def test_other_names(folder, names):
    save_file(leaves(*names), folder / "model.safetensors")
    expected = [(k, k) for k, _ in EXPECTED] if names[0] == names[1] else EXPECTED
    assert column(find(folder)) == expected


def test_own_scale_before_the_one_for_both(folder):
    change(folder, kv_scale=f32(9))
    assert column(find(folder)) == EXPECTED


def test_autofp8_says_static(folder):
    configure(folder, "static", "fp8")
    assert find(folder).scheme == "fp8"
    configure(folder, "dynamic", "fp8")
    assert find_kv_scales(folder, LAYERS, HEADS) is None


def test_integer_zero_points(folder):
    """compressed-tensors: x ~ (stored - zero_point) * scale."""
    configure(folder, CT | {"type": "int", "symmetric": False})
    points = {name.replace("scale", "zero_point"): np.full(1, -16, np.int8) for name in leaves()}
    save_file(leaves() | points, folder / "model.safetensors")
    side = find(folder).layers[0].key
    assert side.zero is not None and side.zero.tolist() == [16 * 0.125] * HEADS


@pytest.mark.parametrize(("code", "value"), [(0x00, 0), (0x38, 1), (0xB8, -1), (0x7E, 448), (0x01, 2**-9), (0x44, 3)])
def test_fp8_numbers(folder, code, value):
    """Zero points of fp8 schemes are stored as e4m3; compare the table of the OCP specification."""
    from octavo.checkpoint.kv_scales import tensors

    assert tensors._DECODERS["F8_E4M3"](bytes([code])).tolist() == [value]


def test_modelopt(tmp_path):
    modelopt_config(tmp_path)
    save_file(leaves("k_proj.k_scale", "v_proj.v_scale", shape=()), tmp_path / "model.safetensors")
    scales = find(tmp_path)
    assert (scales.scheme, scales.origin) == ("fp8", "ModelOpt kv_cache_quant_algo") and column(scales) == EXPECTED
    configure(tmp_path, {"dynamic": False, "num_bits": 8, "type": "float"}, "modelopt")  # newer exports have both
    assert column(find(tmp_path)) == EXPECTED
    (tmp_path / "hf_quant_config.json").unlink()
    assert column(find(tmp_path)) == EXPECTED
    (tmp_path / "config.json").unlink()
    modelopt_config(tmp_path, "INT8")
    assert find(tmp_path).scheme == "int8-static"


def test_nothing_declared(folder):
    for content in ({}, {"quantization_config": None}, {"quantization_config": {"quant_method": "awq", "bits": 4}}):
        (folder / "config.json").write_text(json.dumps(content))
        assert find_kv_scales(folder, LAYERS, HEADS) is None
    modelopt_config(folder, None)
    assert find_kv_scales(folder, LAYERS, HEADS) is None


@pytest.mark.parametrize("dynamic", [True, "local"])
def test_dynamic_has_no_scales_and_says_so(folder, dynamic, caplog):
    configure(folder, CT | {"dynamic": dynamic, "strategy": "token"})
    with caplog.at_level(logging.INFO, "octavo"):
        assert find_kv_scales(folder, LAYERS, HEADS) is None
    assert "dynamic" in caplog.text


def shard(folder: Path) -> dict[str, str]:
    """Scales of layer 0 in the first of three shards, the rest in the second, weights alone in the third."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{1 if '.0.' in name else 3 if name == WEIGHT else 2}.safetensors" for name in tensors}
    for file in set(places.values()):
        save_file({name: value for name, value in tensors.items() if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def test_shards_and_only_the_scales_are_read(folder):
    shard(folder)
    (folder / "model-3.safetensors").unlink()  # holds no scales, so it is not even opened
    assert column(find(folder)) == EXPECTED


def test_weights_are_not_read(folder, monkeypatch):
    tensors = leaves() | {WEIGHT: np.ones((1024, 1024), np.float32)}
    save_file(tensors, folder / "model.safetensors")
    read = []
    monkeypatch.setattr(
        np, "frombuffer", lambda raw, kind, real=np.frombuffer: read.append(len(raw)) or real(raw, kind)
    )
    find(folder)
    assert read == [4] * (2 * LAYERS)


def test_import_and_read_need_no_torch(folder):
    code = (
        "import sys; from pathlib import Path; from octavo.checkpoint.kv_scales import find_kv_scales;"
        f"assert find_kv_scales(Path({str(folder)!r}), {LAYERS}, {HEADS}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# damage: every way has an error that names the place

BAD_NUMBERS = {"nan": np.nan, "inf": np.inf, "zero": 0.0, "negative": -0.5, "subnormal": 1e-42}


@pytest.mark.parametrize("value", BAD_NUMBERS.values(), ids=BAD_NUMBERS)
@pytest.mark.parametrize("leaf", ["k_scale", "v_scale"])
def test_bad_numbers(folder, leaf, value):
    change(folder, **{leaf: f32(value)})
    with pytest.raises(
        CheckpointError, match=rf"model\.safetensors: model\.layers\.1\.self_attn\.{leaf}: .*head 0 is"
    ) as e:
        find(folder)
    assert "--kv-cache-dtype int8" in str(e.value)


DAMAGED_TENSORS = {
    "one missing": ({"k_scale": None}, r"layer 1 has no k_scale \(1 of 6 scales missing\)"),
    "too long": ({"k_scale": f32(1, 1, 1)}, r"layers\.1\.self_attn\.k_scale: has shape \[3\], expected 1 values"),
    "per head undeclared": ({"k_scale": f32(1, 1, 1, 1)}, r"k_scale: has shape \[4\], expected 1 values"),
    "empty": ({"k_scale": f32()}, r"k_scale: has shape \[0\], expected 1 values"),
    "too large": ({"k_scale": np.ones(20000, np.float32)}, r"k_scale has 80000 bytes, too many for scales"),
    "fp64 overflow": ({"k_scale": np.full(1, 1e300)}, r"k_scale: the scale of head 0 is inf"),
    "unknown dtype": ({"k_scale": np.ones(1, np.uint16)}, r"k_scale is stored as U16 \(can read"),
    "names disagree": ({"k_proj.output_scale": f32(3)}, r"k_scale: disagrees with .*k_proj\.output_scale"),
    "zero point": ({"k_zero_point": np.ones(1, np.int8)}, r"k_zero_point: is not zero, but config\.json"),
}


@pytest.mark.parametrize(("changes", "message"), DAMAGED_TENSORS.values(), ids=DAMAGED_TENSORS)
def test_damaged_tensors(folder, changes, message):
    change(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        find(folder)


def test_asymmetric_without_zero_point(folder):
    configure(folder, CT | {"type": "int", "symmetric": False})
    with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn\.k_scale: has no k_zero_point"):
        find(folder)


def test_declared_but_all_missing(folder):
    save_file({WEIGHT: np.ones(2, np.float32)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"config\.json: declares .* holds no KV scales\nhint: other engines"):
        find(folder)


def test_fewer_layers_than_the_model(folder):
    with pytest.raises(CheckpointError, match=r"layer 3 has no k_scale \(4 of 10"):
        find_kv_scales(folder, 5, HEADS)


def test_heads_of_another_model(folder):
    configure(folder, CT | {"strategy": "attn_head"})
    save_file(leaves(shape=(8,)), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn\.k_scale: has shape \[8\], expected 4 values"):
        find(folder)


SCHEMES = {
    "int4": (CT | {"type": "int", "num_bits": 4}, "type `int` with 4 bits"),
    "fp4": (CT | {"num_bits": 4}, "type `float` with 4 bits"),
    "type": (CT | {"type": "complex"}, "type `complex`"),
    "type is a list": (CT | {"type": []}, "type `"),
    "bits are true": (CT | {"num_bits": True}, "with True bits"),
    "channel": (CT | {"strategy": "channel"}, "strategy `channel`"),
    "strategy is a list": (CT | {"strategy": [1]}, "strategy `"),
    "group": (CT | {"group_size": 64}, "group_size 64"),
    "asymmetric fp8": (CT | {"symmetric": False}, "symmetric `False` with type `float`"),
    "dynamic": (CT | {"dynamic": "sometimes"}, "dynamic `sometimes`"),
    "text": ("static", "`static` is not an object"),
    "list": ([CT], "is not an object"),
}


@pytest.mark.parametrize(("scheme", "message"), SCHEMES.values(), ids=SCHEMES)
def test_schemes_that_cannot_be_used(folder, scheme, message):
    configure(folder, scheme)
    with pytest.raises(CheckpointError, match=r"config\.json: kv_cache_scheme: .*" + message) as e:
        find(folder)
    assert e.value.hint


@pytest.mark.parametrize("algo", ["NVFP4", "NVFP4_AFFINE", "FP8_K_NVFP4_V", 7, ["FP8"]], ids=str)
def test_modelopt_formats_that_cannot_be_used(folder, algo):
    (folder / "config.json").unlink()
    modelopt_config(folder, algo)
    with pytest.raises(CheckpointError, match=r"hf_quant_config\.json: cannot use a KV cache of .*have FP8, INT8"):
        find(folder)


def test_declarations_that_differ(folder):
    modelopt_config(folder, "INT8")
    with pytest.raises(
        CheckpointError, match=r"config\.json declares fp8 and hf_quant_config\.json declares int8-static"
    ):
        find(folder)


@pytest.mark.parametrize("file", ["config.json", "hf_quant_config.json"])
@pytest.mark.parametrize("content", ["", "[]", '{"quantization_config": 3, "quantization": 3}'])
def test_damaged_configs(folder, file, content):
    (folder / file).write_text(content)
    with pytest.raises(CheckpointError, match=file):
        find(folder)


def test_every_truncation_is_named(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for length in range(0, len(whole), 31):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            find(folder)


def test_the_same_tensor_in_two_files(folder):
    save_file(leaves(), folder / "kv_scales.safetensors")
    with pytest.raises(CheckpointError, match=r"is in both model\.safetensors and kv_scales\.safetensors"):
        find(folder)


def test_damaged_index(folder):
    places = shard(folder)
    index = folder / "model.safetensors.index.json"
    (folder / "model-2.safetensors").rename(folder / "kept")
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors, which holds model\.layers\.1.* is missing"):
        find(folder)
    save_file({}, folder / "model-2.safetensors")
    with pytest.raises(CheckpointError, match=r"index\.json: places model\.layers\.1\.self_attn\.k_scale in model-2"):
        find(folder)
    index.write_text(json.dumps({"weight_map": places | dict.fromkeys(leaves(), "../x.safetensors")}))
    with pytest.raises(CheckpointError, match="not a file of this folder"):
        find(folder)
    index.write_text(json.dumps({"weight_map": [1]}))
    with pytest.raises(CheckpointError, match="`weight_map` does not map"):
        find(folder)


# values


def test_values_are_checked_where_they_are_born():
    good = SideScales(f32(1, 2))
    with pytest.raises(BadValue, match="head 1 is -2"):
        SideScales(f32(1, -2))
    with pytest.raises(BadValue, match="float64"):
        SideScales(np.ones(2))
    with pytest.raises(BadValue, match="1 zeros for 2 scales"):
        SideScales(f32(1, 2), f32(1))
    with pytest.raises(BadValue, match="zero of head 0 is nan"):
        SideScales(f32(1), f32(np.nan))
    with pytest.raises(UnknownChoice, match="`int4`"):
        KVScales("int4", (LayerScales(good, good),), "test")
    with pytest.raises(BadValue, match=r"\[1, 2\] KV heads"):
        KVScales("fp8", (LayerScales(good, SideScales(f32(1))),), "test")
    with pytest.raises(BadValue, match="fp8 is symmetric"):
        KVScales("fp8", (LayerScales(good, SideScales(f32(1, 2), f32(0, 0))),), "test")


# round trips

KINDS = {
    "fp8": {"scheme": "fp8", "per_head": False},
    "fp8 per head": {"scheme": "fp8"},
    "int8": {"per_head": False},
    "int8 per head": {},
    "asymmetric": {"per_head": False, "asymmetric": True},
    "asymmetric per head": {"asymmetric": True},
}


def bare(folder: Path) -> Path:
    save_file({WEIGHT: np.ones(2, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    return folder


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_compressed_tensors_round_trip(tmp_path, kind):
    scales = make(**kind)
    write_compressed_tensors(bare(tmp_path), scales)
    assert_same(find(tmp_path), scales, rtol=3e-7 if kind.get("asymmetric") else 0)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "llama" and config["quantization_config"] == compressed_tensors_config(scales)
    tensor = load_file(tmp_path / "kv_scales.safetensors")["model.layers.2.self_attn.v_scale"]
    assert tensor.shape == ((HEADS, 1, 1) if kind.get("per_head", True) else (1,))
    write_compressed_tensors(tmp_path, other := make())  # again, over the first
    assert_same(find(tmp_path), other)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "kv_scales.safetensors", "model.safetensors"]


@pytest.mark.parametrize("scheme", ["fp8", "int8-static"])
def test_modelopt_round_trip(tmp_path, scheme):
    write_modelopt(bare(tmp_path), scales := make(scheme, per_head=False))
    assert_same(find(tmp_path), scales)
    assert "model.layers.0.self_attn.k_proj.k_scale" in load_file(tmp_path / "kv_scales.safetensors")


def test_modelopt_keeps_what_is_there(tmp_path):
    configure(bare(tmp_path), {"num_bits": 8, "type": "int", "dynamic": False}, "modelopt", quant_algo="FP8")
    modelopt_config(tmp_path, "INT8")
    write_modelopt(tmp_path, scales := make("fp8", per_head=False))
    assert_same(find(tmp_path), scales)
    content = json.loads((tmp_path / "hf_quant_config.json").read_text())
    assert content["producer"]["version"] == "0.29.0" and content["quantization"]["exclude_modules"] == ["lm_head"]
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_algo"] == "FP8"


def test_modelopt_has_one_scale_per_layer(tmp_path):
    scales = make("fp8")
    with pytest.raises(
        BadValue, match=r"layer 0, k: 4 heads with different scales must share one\nhint: .*reduce=True"
    ):
        write_modelopt(tmp_path, scales)
    write_modelopt(tmp_path, scales, reduce=True)
    assert column(find(tmp_path))[1][0] == [float(scales.layers[1].key.scale.max())] * HEADS
    with pytest.raises(BadValue, match="no zero points"):
        write_modelopt(tmp_path, make(asymmetric=True))


@pytest.mark.parametrize("write", [write_compressed_tensors, write_modelopt])
def test_written_beside_shards(folder, write):
    tensors = {WEIGHT: np.ones(2, np.float32)}
    save_file(tensors, folder / "model.safetensors")
    shard(folder)
    (folder / "config.json").unlink()
    for scales in (make("fp8", per_head=False), make("int8-static", per_head=False)):
        write(folder, scales)
        assert_same(find(folder), scales)
    places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert places[WEIGHT] == "model-3.safetensors" and len(places) == 1 + 2 * LAYERS


def test_a_written_checkpoint_still_opens(tmp_path):
    from octavo.checkpoint.safetensors import SafetensorsSource

    config = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": LAYERS}
    config |= {"num_attention_heads": 4, "num_key_value_heads": HEADS, "vocab_size": 5, "rms_norm_eps": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    save_file({WEIGHT: np.ones((5, 8), np.float32)}, tmp_path / "model.safetensors")
    write_compressed_tensors(tmp_path, make())
    assert SafetensorsSource(tmp_path).spec.layers == LAYERS


def test_where_scales_cannot_be_written(folder):
    scales = make("fp8", per_head=False)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: already holds KV scales \(model\.layers"):
        write_compressed_tensors(folder, scales)
    save_file({WEIGHT: np.ones(2, np.float32)}, folder / "model.safetensors")
    configure(folder, None, "awq")
    with pytest.raises(CheckpointError, match=r"config\.json: is quantized by `awq`"):
        write_compressed_tensors(folder, scales)
    configure(folder, None)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"hint: rename weights\.safetensors to model\.safetensors"):
        write_compressed_tensors(folder, scales)
    with pytest.raises(CheckpointError, match=r"cannot be written: No such file"):
        write_compressed_tensors(folder / "nowhere", scales)


@pytest.mark.parametrize(
    "write", [write_compressed_tensors, write_modelopt, lambda f, s: write_past_kv_scales(f, s, 2)]
)
def test_a_full_disk_leaves_the_old_files(tmp_path, write, monkeypatch):
    write(bare(tmp_path), make(per_head=False))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    calls = iter([None])  # the first file fits, the second does not

    def fsync(_):
        if next(calls, "full") == "full":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("octavo.checkpoint.kv_scales.files.os", SimpleNamespace(fsync=fsync, replace=os.replace))
    with pytest.raises(CheckpointError, match=r"cannot be written: No space left on device\nhint: files .* unchanged"):
        write(tmp_path, make(layers=LAYERS, per_head=False, heads=8))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


# past_kv_scale


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("asymmetric", [False, True], ids=["symmetric", "asymmetric"])
def test_past_kv_scales_mean_the_same_on_any_number_of_ranks(tmp_path, ranks, asymmetric):
    scales = make(per_head=False, asymmetric=asymmetric)
    write_past_kv_scales(tmp_path, scales, ranks)
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    names = {f"layers.{layer}.past_kv_scale.{rank}.weight" for layer in range(LAYERS) for rank in range(ranks)}
    assert sizes == dict.fromkeys(names, 16 if asymmetric else 8)
    assert_same(read_past_kv_scales(tmp_path, LAYERS, HEADS), scales)


@pytest.mark.parametrize("asymmetric", [False, True], ids=["symmetric", "asymmetric"])
def test_past_kv_scales_of_one_head_per_rank(tmp_path, asymmetric):
    write_past_kv_scales(tmp_path, scales := make(asymmetric=asymmetric), HEADS)
    assert_same(read_past_kv_scales(tmp_path, LAYERS, HEADS), scales)


def test_past_kv_scales_as_lmdeploy_writes_them(tmp_path):
    """Two ranks of two heads: numpy.tofile of [k_scale, k_zp, v_scale, v_zp], zp = (max+min)/2, scale = range/255."""
    low, high = np.array([-3.0, -1.0]), np.array([1.0, 7.0])  # K of rank 0, rank 1
    for rank in range(2):
        scale, zero = (high[rank] - low[rank]) / 255, (high[rank] + low[rank]) / 2
        f32(scale, zero, 0.5, -2.0).tofile(tmp_path / f"layers.0.past_kv_scale.{rank}.weight")
    key, value = (side for _, side in read_past_kv_scales(tmp_path, 1, 4).layers[0].sides)
    assert value.scale.tolist() == [0.5] * 4 and value.zero is not None and value.zero.tolist() == [-2.0] * 4
    assert key.zero is not None
    for head, x in ((0, low[0]), (1, high[0]), (2, low[1]), (3, high[1])):
        code = np.clip(np.rint((x - key.zero[head]) / key.scale[head]), -128, 127)
        assert abs(code * key.scale[head] + key.zero[head] - x) <= key.scale[head] * 0.51


def test_heads_of_one_rank_must_agree_or_widen(tmp_path):
    scales = make(asymmetric=True)
    with pytest.raises(BadValue, match=r"layer 0, k, rank 0: 2 heads with different scales"):
        write_past_kv_scales(tmp_path, scales, 2)
    assert not list(tmp_path.iterdir())
    write_past_kv_scales(tmp_path, scales, 2, reduce=True)
    wide = read_past_kv_scales(tmp_path, LAYERS, HEADS)
    for before, after in zip(scales.layers, wide.layers, strict=True):
        for (_, narrow), (_, side) in zip(before.sides, after.sides, strict=True):
            low, high = (reach(narrow, code).reshape(2, 2) for code in (-128, 127))  # [rank, head]
            np.testing.assert_allclose(reach(side, -128), np.repeat(low.min(1), 2), rtol=1e-5)
            np.testing.assert_allclose(reach(side, 127), np.repeat(high.max(1), 2), rtol=1e-5)


def reach(side: SideScales, code: int) -> np.ndarray:
    assert side.zero is not None
    return side.scale.astype(np.float64) * code + side.zero


@pytest.mark.parametrize("write", [write_compressed_tensors, write_modelopt])
def test_strided_values_are_written_as_they_read(tmp_path, write):
    side = SideScales((f32(1, 9, 1, 9, 1, 9) if write is write_modelopt else f32(1, 9, 2, 9, 3, 9))[::2])
    layer = LayerScales(side, SideScales(side.scale[::-1]))
    write(bare(tmp_path), scales := KVScales("fp8", (layer,), "test"))
    found = find_kv_scales(tmp_path, 1, 3)
    assert found is not None
    assert_same(found, scales)


def test_widening_symmetric_takes_the_largest(tmp_path):
    side = SideScales(f32(1, 4, 2, 3))
    write_past_kv_scales(tmp_path, KVScales("int8-static", (LayerScales(side, side),), "test"), 2, reduce=True)
    assert read_past_kv_scales(tmp_path, 1, 4).layers[0].key.scale.tolist() == [4, 4, 3, 3]


def test_one_asymmetric_side_makes_four_numbers(tmp_path):
    layer = LayerScales(SideScales(f32(1)), SideScales(f32(2), f32(3)))
    write_past_kv_scales(tmp_path, KVScales("int8-static", (layer,), "test"), 1)
    assert np.fromfile(tmp_path / "layers.0.past_kv_scale.0.weight", "<f4").tolist() == [1, 0, 2, 3]


def past_kv_name(layer: int = 1, rank: int = 1) -> str:
    return f"layers.{layer}.past_kv_scale.{rank}.weight"


DAMAGED_FILES = {
    "empty": (b"", r"holds 0 bytes, expected 8 .* or 16"),
    "one number": (f32(1).tobytes(), r"holds 4 bytes"),
    "three numbers": (f32(1, 1, 1).tobytes(), r"holds 12 bytes"),
    "five numbers": (f32(1, 1, 1, 1, 1).tobytes(), r"holds 20 bytes"),
    "odd bytes": (b"1234567", r"holds 7 bytes"),
    "nan": (f32(1, np.nan).tobytes(), r"v: the scale of head 0 is nan"),
    "inf": (f32(np.inf, 1).tobytes(), r"k: the scale of head 0 is inf"),
    "zero": (f32(1, 0).tobytes(), r"v: the scale of head 0 is 0"),
    "negative": (f32(-1, 1).tobytes(), r"k: the scale of head 0 is -1"),
    "bad zero point": (f32(1, 0, 1, np.nan).tobytes(), r"v: the zero of head 0 is nan"),
    "fp64": (np.array([0.5, 0.5]).tobytes(), r"k: the scale of head 0 is 0"),
    "not like its rank": (f32(1, 0, 1, 0).tobytes(), r"layers\.1\.past_kv_scale\.0.* do not both have zero points"),
}


@pytest.mark.parametrize(("content", "message"), DAMAGED_FILES.values(), ids=DAMAGED_FILES)
def test_damaged_past_kv_scale_files(tmp_path, content, message):
    write_past_kv_scales(tmp_path, make(per_head=False), 2)
    (tmp_path / past_kv_name()).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"layers\.1\.past_kv_scale\.1\.weight.*" + message) as e:
        read_past_kv_scales(tmp_path, LAYERS, HEADS)
    assert "export the scales again" in str(e.value)


def test_past_kv_scale_files_missing_or_of_another_model(tmp_path):
    def fails(message: str, layers: int = LAYERS, heads: int = HEADS) -> None:
        with pytest.raises(CheckpointError, match=message):
            read_past_kv_scales(tmp_path, layers, heads)

    fails(r"no layers\.0\.past_kv_scale\.0\.weight\nhint: .*triton_models/weights")
    write_past_kv_scales(tmp_path, make(per_head=False), 2)
    fails("5 KV heads cannot be split evenly over 2 ranks", heads=5)
    fails(r"layers\.3\.past_kv_scale\.0\.weight is missing \(2 of 8 files\)", layers=4)
    fails(r"layers\.2\.past_kv_scale\.0\.weight belongs to another model: this one has 2 layers", layers=2)
    (tmp_path / past_kv_name()).unlink()
    fails(r"layers\.1\.past_kv_scale\.1\.weight is missing \(1 of 6 files\)")
    (tmp_path / past_kv_name()).mkdir()
    fails(r"layers\.1\.past_kv_scale\.1\.weight: ")


def test_what_past_kv_scales_cannot_hold(tmp_path):
    scales = make(per_head=False)
    with pytest.raises(BadValue, match="int8 scales, not fp8"):
        write_past_kv_scales(tmp_path, make("fp8", per_head=False), 1)
    for ranks in (0, -1, 3, 8):
        with pytest.raises(OctavoError, match=f"4 KV heads cannot be split evenly over {ranks} ranks"):
            write_past_kv_scales(tmp_path, scales, ranks)
    write_past_kv_scales(tmp_path, scales, 2)
    write_past_kv_scales(tmp_path, scales, 4)
    with pytest.raises(CheckpointError, match=r"layers\.0\.past_kv_scale\.1\.weight is there and would be read with"):
        write_past_kv_scales(tmp_path, scales, 1)
