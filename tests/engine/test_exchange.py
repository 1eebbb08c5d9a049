"""Scales that were exported into a copy of a checkpoint: the engine finds them there and loses what it should."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.base.errors import AssetError, CheckpointError, UsageError
from octavo.calibrate.cache_plan import CacheOptions
from octavo.calibrate.divergence import measure
from octavo.calibrate.exchange import ExportOptions, asset_scales, export_scales
from octavo.calibrate.run import CalibrateOptions, calibrate
from octavo.checkpoint.kv_scales import find_kv_scales
from octavo.engine.llm import LLM
from octavo.kv.asset import open_asset
from octavo.kv.statistics import StaticRule

EXACT = {"dtype": "float32", "kv_cache_memory": "2048tok"}
KINDS = {
    "compressed-tensors int8": ("compressed-tensors", "int8-static", False),
    "compressed-tensors int8, one for all heads": ("compressed-tensors", "int8-static", True),
    "compressed-tensors fp8": ("compressed-tensors", "fp8", False),
    "modelopt int8": ("modelopt", "int8-static", True),
    "modelopt fp8": ("modelopt", "fp8", True),
}


@pytest.fixture(scope="module")
def windows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(5, 261, (120,), generator=generator).tolist() for _ in range(2)]


def kl(exact: LLM, other: LLM, windows: list[list[int]]) -> float:
    return measure(list(zip(exact.score(windows), other.score(windows), strict=True))).kl_mean


@pytest.fixture(scope="module")
def exact(readable) -> LLM:
    return LLM(readable, kv_cache_dtype="fp32", kv_asset="off", **EXACT)


def by_layer(asset: str, folder: Path) -> str:
    """The asset, with one static scale for all heads of a layer."""
    shutil.copytree(asset, folder)
    about = json.loads((folder / "kv_plan.json").read_text())
    about["static"] |= {"granularity": "layer", "reach": "mse"}
    (folder / "kv_plan.json").write_text(json.dumps(about))
    return str(folder)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_declared_scales_lose_what_the_asset_loses(kind, readable, tiny_asset, exact, windows, tmp_path):
    form, scheme, reduce = kind
    out = tmp_path / "exported"
    export = export_scales(
        ExportOptions(asset=tiny_asset, format=form, scheme=scheme, reduce=reduce, model=readable, out=str(out))
    )
    assert "kv_scales.safetensors" in export.files and "model.safetensors" not in export.files
    other = LLM(str(out), kv_cache_dtype="auto", **EXACT)
    assert other.cache.dtype == scheme and other.cache.plan_source.startswith("checkpoint (")
    asset = by_layer(tiny_asset, tmp_path / "asset") if reduce else tiny_asset
    want = kl(exact, exact.with_cache(kv_cache_dtype=scheme, kv_asset=asset, kv_rotate="off"), windows)
    assert want > 1e-6
    assert kl(exact, other, windows) == pytest.approx(want, rel=0.01)


@pytest.mark.parametrize("scheme", ["int8-static", "fp8"])
def test_round_trip(scheme, readable, tiny_asset, tmp_path):
    out, want = tmp_path / "out", asset_scales(open_asset(tiny_asset), scheme)
    options = ExportOptions(asset=tiny_asset, format="compressed-tensors", scheme=scheme, model=readable, out=str(out))
    export_scales(options)
    with pytest.raises(UsageError, match="not an empty folder\nhint: leave --model out"):
        export_scales(options)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    again = ExportOptions(asset=tiny_asset, format="compressed-tensors", scheme=scheme, out=str(out))
    assert export_scales(again).scales.scheme == scheme
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    got = find_kv_scales(out, len(want.layers), want.kv_heads)
    assert got is not None
    for mine, theirs in zip(got.layers, want.layers, strict=True):
        for (_, a), (_, b) in zip(mine.sides, theirs.sides, strict=True):
            assert a.scale.tolist() == b.scale.tolist()
    assert "quantization_config" not in json.loads((Path(readable) / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"already declares KV scales \(compressed-tensors"):
        export_scales(ExportOptions(asset=tiny_asset, format="modelopt", scheme=scheme, reduce=True, out=str(out)))


@pytest.mark.parametrize("form", ["compressed-tensors", "modelopt"])
def test_sharded_checkpoints_open_with_their_scales(form, readable, tiny_asset, tmp_path):
    sharded = tmp_path / "sharded"
    shutil.copytree(readable, sharded)
    weights = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    places = {name: f"model-{1 if '.0.' in name else 2}.safetensors" for name in weights}
    for file in set(places.values()):
        save_file({name: value for name, value in weights.items() if places[name] == file}, sharded / file)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    out = str(tmp_path / "out")
    export_scales(ExportOptions(asset=tiny_asset, format=form, reduce=True, model=str(sharded), out=out))
    assert LLM(out, kv_cache_dtype="auto", **EXACT).cache.dtype == "int8-static"


def test_an_asset_of_other_weights_is_refused_and_nothing_is_left(checkpoint, tiny_asset, tmp_path):
    options = ExportOptions(
        asset=tiny_asset, format="compressed-tensors", model=checkpoint("mistral")[0], out=str(tmp_path / "out")
    )
    with pytest.raises(AssetError, match="calibrated on"):
        export_scales(options)
    assert not list(tmp_path.iterdir())


def test_keys_with_a_bias(biased_checkpoint, readable, tmp_path, windows):
    """Exported from keys measured without their bias, and with it: the same to within the first token's keys."""
    folder, _ = biased_checkpoint(64)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(readable) / name, folder)
    (tmp_path / "text.txt").write_text("".join(chr(32 + (7 * n * n + n // 5) % 90) for n in range(3000)))
    exact = LLM(folder, kv_cache_dtype="fp32", kv_asset="off", **EXACT)
    found = {}
    for bias_free in ("auto", "off"):
        options = CalibrateOptions(
            model=folder, out=str(tmp_path / bias_free), data=str(tmp_path / "text.txt"), samples=4, seqlen=128,
            sensitivity_tokens=64, dtype="float32", charts=False, static=StaticRule(reach="peak"),
            cache=CacheOptions(kv_bias_free=bias_free),
        )  # fmt: skip
        calibrate(options, lambda *step: None)
        out = str(tmp_path / f"{bias_free}-out")
        export = export_scales(ExportOptions(asset=options.out, format="compressed-tensors", model=folder, out=out))
        assert bool(export.notes) == (bias_free == "auto")
        other = LLM(out, kv_cache_dtype="auto", **EXACT)
        assert "bias-free" not in other.cache.plan
        found[bias_free] = kl(exact, other, windows), export.scales.layers[0].key.scale
    assert found["auto"][1] == pytest.approx(found["off"][1], rel=0.1)
    assert found["auto"][0] == pytest.approx(found["off"][0], rel=0.3)
