"""Scales that follow from an asset, as other engines understand them, without a model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from octavo.base.errors import AssetError, BadValue, CheckpointError, OctavoError, UnknownChoice
from octavo.calibrate import exchange
from octavo.calibrate.exchange import ExportOptions, asset_scales, export_scales
from octavo.checkpoint.folder_copy import copy_checkpoint, new_folder
from octavo.checkpoint.kv_scales import read_past_kv_scales
from octavo.cli import main
from octavo.kv.asset import KVAsset, write_asset
from octavo.kv.statistics import check_statistics

LAYERS, HEADS, WIDTH = 2, 4, 8


def tensors(biased: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    found = {}
    for layer in range(LAYERS):
        for side in "kvq":
            for name in ("absmax", "rms", "mean", "first"):
                found[f"layers.{layer}.{side}.{name}"] = uniform(1, 2, HEADS, WIDTH)
            found[f"layers.{layer}.{side}.moment"] = torch.eye(WIDTH).repeat(HEADS, 1, 1)
            for prefix in (side, f"{side}.turned"):
                found[f"layers.{layer}.{prefix}.min"] = uniform(-3, -1, HEADS, WIDTH)
                found[f"layers.{layer}.{prefix}.max"] = uniform(2, 5, HEADS, WIDTH)
                found[f"layers.{layer}.{prefix}.clip"] = torch.ones(HEADS)
        if biased:
            found[f"layers.{layer}.k.biased.absmax"] = uniform(50, 60, HEADS, WIDTH)
    return found


def about(key_bias_stored: bool = False, **static) -> dict:
    side = {"scheme": "int8", "transforms": ["rotation"]}
    return {
        "format": 1, "model": "made up", "fingerprint": "0" * 64, "data": {}, "kv_cache_dtype": "int8",
        "shape": {"layers": LAYERS, "kv_heads": HEADS, "heads": HEADS, "head_dim": WIDTH},
        "layers": [{"k": side, "v": side}] * LAYERS, "bytes_per_token": 1.0, "key_bias_stored": key_bias_stored,
        "static": {"granularity": "head", "symmetric": True, "margin": 1.0} | static,
    }  # fmt: skip


def asset(biased: bool = False, key_bias_stored: bool = False, **static) -> KVAsset:
    found = check_statistics(tensors(biased), LAYERS, HEADS, WIDTH, "here")
    return KVAsset(Path("nowhere"), about(key_bias_stored, **static), found)


@pytest.fixture
def folder(tmp_path) -> str:
    write_asset(tmp_path / "asset", about(), tensors())
    return str(tmp_path / "asset")


def reach(found: KVAsset, layer: int, name: str) -> np.ndarray:
    low, high = found.statistics(layer, f"{name}.min"), found.statistics(layer, f"{name}.max")
    return torch.maximum(-low.amin(1), high.amax(1)).numpy()


def test_symmetric_scales_are_the_range_over_the_peak():
    given = asset()
    for scheme, peak in (("int8-static", 127), ("fp8", 448)):  # fp8: the next power of two
        scales = asset_scales(given, scheme)
        assert (scales.scheme, scales.symmetric) == (scheme, True)
        for layer, sides in enumerate(scales.layers):
            for side, name in ((sides.key, "k"), (sides.value, "v")):
                want = reach(given, layer, name) / peak
                want = 2 ** np.ceil(np.log2(want)) if scheme == "fp8" else want
                np.testing.assert_allclose(side.scale, want, rtol=1e-6)


def test_margin_and_sharing():
    plain, wide = asset_scales(asset()), asset_scales(asset(margin=1.5))
    np.testing.assert_allclose(wide.layers[1].key.scale, 1.5 * plain.layers[1].key.scale, rtol=1e-6)
    shared = asset_scales(asset(), shared=True)
    assert not shared.per_head
    assert shared.layers[0].value.scale[0] == plain.layers[0].value.scale.max()


def test_asymmetric_ranges_reach_what_was_seen():
    given = asset(symmetric=False)
    side = asset_scales(given).layers[0].key
    assert side.zero is not None
    np.testing.assert_allclose(side.zero - 127 * side.scale, given.statistics(0, "k.min").amin(1), rtol=1e-5)
    np.testing.assert_allclose(side.zero + 127 * side.scale, given.statistics(0, "k.max").amax(1), rtol=1e-5)
    assert asset_scales(given, "fp8").symmetric


def test_channel_scales_become_the_widest_of_each_head():
    got, want = asset_scales(asset(granularity="channel")), asset_scales(asset())
    np.testing.assert_array_equal(got.layers[1].key.scale, want.layers[1].key.scale)


def test_keys_measured_without_their_bias_take_the_range_with_it():
    given = asset(biased=True, symmetric=False)
    scales = asset_scales(given)
    key, value = scales.layers[0].key, scales.layers[0].value
    assert key.zero is not None and value.zero is not None and not key.zero.any() and value.zero.any()
    np.testing.assert_allclose(key.scale, given.statistics.tensors["layers.0.k.biased.absmax"].amax(1) / 127, rtol=1e-6)
    stored = asset_scales(asset(biased=True, key_bias_stored=True)).layers[0].key
    np.testing.assert_array_equal(stored.scale, asset_scales(asset()).layers[0].key.scale)


def test_a_bias_that_was_not_measured_is_refused(monkeypatch):
    class Biased:
        name = "biased"

        class spec:
            has_key_bias = True

    monkeypatch.setattr(exchange, "fingerprint", lambda _: "0" * 64)
    for good in (asset(biased=True), asset(key_bias_stored=True)):
        exchange._check_model(good, Biased)  # type: ignore[arg-type]
    with pytest.raises(AssetError, match=r"without the bias that biased adds.*\nhint: .*--kv-bias-free off"):
        exchange._check_model(asset(), Biased)  # type: ignore[arg-type]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_past_kv_scale_files(folder, tmp_path, ranks):
    out = tmp_path / "deep" / "out"
    found = export_scales(
        ExportOptions(asset=folder, format="past-kv-scale", out=str(out), ranks=ranks, reduce=ranks < HEADS)
    )
    assert len(found.files) == LAYERS * ranks == len(list(out.iterdir()))
    read, want = read_past_kv_scales(out, LAYERS, HEADS), asset_scales(asset())
    for layer in range(LAYERS):
        widest = want.layers[layer].key.scale.reshape(ranks, -1).max(1)
        np.testing.assert_array_equal(read.layers[layer].key.scale, np.repeat(widest, HEADS // ranks))


def test_wrong_use(folder, tmp_path):
    def options(**changed) -> ExportOptions:
        return replace(ExportOptions(asset=folder, format="past-kv-scale", out=str(tmp_path / "out")), **changed)

    for changed, error, said in (
        ({"format": "past-kv"}, UnknownChoice, "did you mean `past-kv-scale`"),
        ({"scheme": "int4"}, BadValue, "no scales for `int4`"),
        ({"format": "modelopt", "ranks": 2}, BadValue, "only past-kv-scale"),
    ):
        with pytest.raises(error, match=said):
            options(**changed)
    for changed, said in (
        ({}, "4 heads with different scales must share one\nhint: .*--reduce"),
        ({"ranks": 3}, "cannot be split evenly"),
        ({"scheme": "fp8", "ranks": 4}, "int8 scales, not fp8"),
        ({"format": "modelopt"}, "there is none at .*out\nhint: name the checkpoint to copy there with --model"),
        ({"format": "modelopt", "model": "smollm2"}, "which has no place for modelopt scales"),
        ({"format": "past-kv-scale", "model": "smollm2"}, "calibrated on made up"),
        ({"asset": str(tmp_path / "none")}, "no KV asset"),
    ):
        with pytest.raises(OctavoError, match=said):
            export_scales(options(**changed))


def test_the_verb(folder, tmp_path, capsys):
    out = str(tmp_path / "out")
    words = ["export-scales", folder, "--format", "past-kv-scale", "--out", out, "--ranks", "4"]
    assert main([*words, "--json", str(tmp_path / "facts.json")]) == 0
    assert "one scale for each KV head, no zero points" in capsys.readouterr().out
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["per_head"] and facts["symmetric"] and len(facts["files"]) == 4 * LAYERS
    assert main(["export-scales", folder, "--format", "gguf", "--out", out]) == 2
    assert main(["export-scales", folder, "--out", out]) == 2


# folders


def test_a_copy_leaves_out_what_is_no_part_of_the_checkpoint(tmp_path):
    source, target = tmp_path / "from", tmp_path / "to"
    for path in (source / "kv_asset", target):
        path.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", ".hidden", "kv_plan.json", "tokenizer.json"):
        (source / name).write_text(name)
    copy_checkpoint(source, target, frozenset({"kv_plan.json"}))
    assert {file.name for file in target.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    (target / "config.json").write_text("changed")
    assert (source / "config.json").read_text() == "config.json"
    with pytest.raises(CheckpointError, match="cannot be copied"):
        copy_checkpoint(source, tmp_path / "none")


def test_links_are_followed_and_without_hard_links_files_are_copied(tmp_path, monkeypatch):
    real, source, target = tmp_path / "blobs", tmp_path / "from", tmp_path / "to"
    for path in (real, source, target):
        path.mkdir()
    (real / "abc").write_text("weights")
    (source / "model.safetensors").symlink_to(real / "abc")
    copy_checkpoint(source, target)
    assert not (target / "model.safetensors").is_symlink()
    (target / "model.safetensors").unlink()
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
    copy_checkpoint(source, target)
    assert (target / "model.safetensors").read_text() == "weights"
    assert (target / "model.safetensors").stat().st_ino != (real / "abc").stat().st_ino


def test_a_new_folder_is_whole_or_not_there(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError), new_folder(out, "") as new:
        shutil.copyfile(tmp_path / "none", new / "half")
    assert not list(tmp_path.iterdir())
    out.mkdir()
    with new_folder(out, "") as new:
        (new / "whole").write_text("")
    assert [file.name for file in out.iterdir()] == ["whole"] and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OctavoError, match="not an empty folder\nhint: try"), new_folder(out, "try"):
        pass
