"""A calibration's folder: written whole or not at all, and refused by name, with a hint, however it is damaged."""

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from octavo.base.errors import AssetError
from octavo.kv.asset import FORMAT, PARAMS_FILE, PLAN_FILE, find_asset, open_asset, plan_layers, write_asset
from octavo.kv.plan import KVPlan, LayerPlan, SidePlan
from octavo.kv.schemes import SCHEMES

LAYERS, KV_HEADS, DIM = 2, 2, 8
PLAN = KVPlan(
    "auto:5bit",
    (
        LayerPlan(SidePlan(SCHEMES["int4"], True, True, ("balance",)), SidePlan(SCHEMES["int8"], True)),
        LayerPlan(SidePlan(SCHEMES["int8-static"], True, True, ("static",)), SidePlan(SCHEMES["bf16"], False)),
    ),
)
SENSITIVITY = {
    "schemes": ["int8", "int4"], "tokens": 64,
    "k": {"int8": [1e-4, 2e-4], "int4": [1e-2, 2e-2]}, "v": {"int8": [1e-4, 1e-4], "int4": [3e-3, 3e-3]},
}  # fmt: skip


def measured(seed: int = 0) -> dict[str, Tensor]:
    """Statistics as an observer finds them."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(LAYERS):
        names = ["k.mean", "q.absmax", "q.rms"]
        for side in "kv":
            names += [f"{side}.{name}" for name in ("max", "absmax", "rms", "first", "turned.max")]
            for low in (f"{side}.min", f"{side}.turned.min"):
                tensors[f"layers.{layer}.{low}"] = -torch.rand(KV_HEADS, DIM, generator=draw)
        tensors |= {f"layers.{layer}.{name}": torch.rand(KV_HEADS, DIM, generator=draw) for name in names}
        shares = ("k.clip", "k.turned.clip", "v.clip", "v.turned.clip")
        tensors |= {f"layers.{layer}.{name}": 0.5 + 0.5 * torch.rand(KV_HEADS, generator=draw) for name in shares}
        for name in ("k.moment", "q.moment"):
            tensors[f"layers.{layer}.{name}"] = torch.rand(KV_HEADS, DIM, DIM, generator=draw)
    return tensors


def about() -> dict[str, Any]:
    return {
        "format": FORMAT, "model": "tiny", "fingerprint": "f" * 64, "data": {"name": "text.txt"},
        "shape": {"layers": LAYERS, "kv_heads": KV_HEADS, "heads": 4, "head_dim": DIM},
        "kv_cache_dtype": PLAN.name, "layers": plan_layers(PLAN), "bytes_per_token": 100.5,
        "static": {"granularity": "head", "symmetric": True, "margin": 1.0}, "key_bias_stored": False,
        "sensitivity": SENSITIVITY, "params_sha256": "",
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    write_asset(tmp_path / "asset", about(), measured())
    return tmp_path / "asset"


def test_round_trip(folder):
    asset = open_asset(folder)
    assert asset.plan.layers == PLAN.layers and asset.plan.name == PLAN.name
    assert asset.plan.params_digest == hashlib.sha256((folder / PARAMS_FILE).read_bytes()).hexdigest()
    for name, tensor in measured().items():
        layer, rest = name.removeprefix("layers.").split(".", 1)
        assert torch.equal(asset.statistics(int(layer), rest), tensor)
    assert asset.about == about() | {"params_sha256": asset.digest}
    assert open_asset(folder / PLAN_FILE).digest == open_asset(str(folder)).digest == asset.digest
    assert sorted(file.name for file in folder.iterdir()) == [PARAMS_FILE, PLAN_FILE]


def test_where_it_is_looked_for(folder):
    assert find_asset(folder) == folder
    assert find_asset(folder.parent) is None
    folder.rename(folder.parent / "kv_asset")
    assert find_asset(folder.parent) == folder.parent / "kv_asset"


# damage


def spell(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change what kv_plan.json says."""

    def act(folder: Path) -> None:
        spelled = json.loads((folder / PLAN_FILE).read_text())
        change(spelled)
        (folder / PLAN_FILE).write_text(json.dumps(spelled))

    return act


def sign(folder: Path) -> None:
    """Make kv_plan.json own the parameters as they are now."""
    digest = hashlib.sha256((folder / PARAMS_FILE).read_bytes()).hexdigest()
    spell(lambda plan: plan.update(params_sha256=digest))(folder)


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    """Change the numbers, and the plan with them."""

    def act(folder: Path) -> None:
        found = load_file(folder / PARAMS_FILE)
        change(found)
        save_file(found, folder / PARAMS_FILE)
        sign(folder)

    return act


def poke(name: str, value: float) -> Callable[[Path], None]:
    return tensors(lambda found: found[name].view(-1)[3].fill_(value))


def replaced(name: str, value: Tensor) -> Callable[[Path], None]:
    return tensors(lambda found: found.update({name: value}))


def cut(folder: Path) -> None:
    whole = (folder / PARAMS_FILE).read_bytes()
    (folder / PARAMS_FILE).write_bytes(whole[: len(whole) // 2])


def flatten_head(folder: Path) -> None:
    def change(found: dict[str, Tensor]) -> None:
        for name in ("min", "max"):
            found[f"layers.1.v.turned.{name}"][1] = 0.25

    tensors(change)(folder)


def side(layer: int, name: str, **change: Any) -> Callable[[Path], None]:
    return spell(lambda plan: plan["layers"][layer][name].update(change))


def text(content: bytes) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / PLAN_FILE).write_bytes(content)

    return act


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no plan": (lambda f: (f / PLAN_FILE).unlink(), r"no KV asset at .*kv_plan\.json is not there"),
    "no parameters": (lambda f: (f / PARAMS_FILE).unlink(), r"kv_params\.safetensors is missing"),
    "parameters cut": (cut, "sha256 differs"),
    "parameters cut, and signed": (lambda f: (cut(f), sign(f)), r"kv_params\.safetensors: unreadable"),
    "parameters of another run": (lambda f: save_file(measured(1), f / PARAMS_FILE), "sha256 differs"),
    "plan empty": (text(b""), r"kv_plan\.json: unreadable"),
    "plan not JSON": (text(b'{"format": 1,'), r"kv_plan\.json: unreadable"),
    "plan not text": (text(b"\xff\xfe{}"), r"kv_plan\.json: unreadable"),
    "plan too deep": (text(b"[" * 100_000), r"kv_plan\.json: unreadable"),
    "plan a list": (text(b"[1]"), "not a JSON object"),
    "another format": (spell(lambda p: p.update(format=FORMAT + 1)), "format 2, and this version reads 1"),
    "format as text": (spell(lambda p: p.update(format="1")), "`format` is missing or not what it should be: '1'"),
    "no such shape": (spell(lambda p: p["shape"].update(kv_heads=0)), r"shape\.kv_heads is 0"),
    "half a shape": (spell(lambda p: p["shape"].pop("head_dim")), r"shape\.head_dim is None"),
    "layers missing": (spell(lambda p: p["layers"].pop()), "plans for 1 layers of a model with 2"),
    "half a layer": (spell(lambda p: p["layers"][1].pop("v")), "layer 1: 'v'"),
    "a layer of text": (spell(lambda p: p["layers"].__setitem__(0, "int8")), "layer 0: "),
    "unknown scheme": (side(1, "k", scheme="int9"), "layer 1: unknown scheme: `int9`"),
    "unknown transform": (side(0, "v", transforms=["rotation", "warp"]), "layer 0: unknown transforms: warp"),
    "transforms of keys on values": (side(0, "v", transforms=["balance"]), "layer 0: balance is for keys"),
    "static without a scale": (side(0, "v", transforms=["static"]), "layer 0: int8 has no static scale"),
    "a scale that is not used": (side(1, "k", transforms=["rotation"]), "layer 1: int8-static needs a static scale"),
    "static rule": (spell(lambda p: p["static"].update(margin=-1)), "`static` is .*'margin': -1"),
    "static rule of other names": (spell(lambda p: p["static"].update(width=1)), "`static` is .*'width': 1"),
    "sensitivity cut": (spell(lambda p: p["sensitivity"]["v"]["int4"].pop()), "`sensitivity` is not whole"),
    "sensitivity of one side": (spell(lambda p: p["sensitivity"].pop("k")), "`sensitivity` is not whole"),
    "sensitivity NaN": (spell(lambda p: p["sensitivity"]["k"].update(int8=[0, float("nan")])), "is not whole"),
    "sensitivity of a scheme unknown": (spell(lambda p: p["sensitivity"]["schemes"].append("x")), "is not whole"),
    "a tensor missing": (tensors(lambda t: t.pop("layers.1.q.moment")), r"layers\.1\.q\.moment is missing"),
    "a tensor of another shape": (
        replaced("layers.0.k.mean", torch.ones(KV_HEADS, DIM + 1)), r"layers\.0\.k\.mean is \(2, 9\).* needs \(2, 8\)",
    ),
    "a moment of another shape": (
        replaced("layers.0.k.moment", torch.ones(KV_HEADS, DIM)), r"k\.moment is \(2, 8\).* needs \(2, 8, 8\)",
    ),
    "NaN": (poke("layers.0.q.moment", float("nan")), r"layers\.0\.q\.moment has NaN or infinite numbers"),
    "infinity": (poke("layers.1.k.max", float("inf")), r"layers\.1\.k\.max has NaN or infinite numbers"),
    "negative rms": (poke("layers.1.v.rms", -0.5), r"layers\.1\.v\.rms has negative numbers"),
    "a scale of zero": (flatten_head, r"layers\.1\.v: a head has a scale of zero"),
}  # fmt: skip
for key in sorted(set(about()) - {"sensitivity"}):
    DAMAGE[f"no {key}"] = (spell(lambda plan, key=key: plan.pop(key)), f"`{key}` is missing or not what it should be")


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(AssetError, match=message) as caught:
        open_asset(folder)
    assert str(folder) in caught.value.message and caught.value.hint


def test_of_other_weights(folder):
    asset = open_asset(folder)
    asset.check_model("tiny", "f" * 64)
    with pytest.raises(AssetError, match=r"calibrated on tiny .*ffff.*, and this is other .*0000") as caught:
        asset.check_model("other", "0" * 64)
    assert caught.value.hint


# a disk that fills


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_a_file(_, path: Path) -> None:
    path.write_bytes(b"half")
    raise SafetensorError("I/O error: No space left on device")


FULL = {
    "parameters": ("safetensors.torch.save_file", half_a_file),
    "plan": ("pathlib.Path.write_text", full),
    "at the end": ("octavo.kv.asset.os.fsync", full),
}


@pytest.mark.parametrize(("where", "fails"), FULL.values(), ids=FULL)
def test_a_full_disk_leaves_the_old_asset(folder, monkeypatch, where, fails):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(where, fails)
        with pytest.raises(AssetError, match="No space left on device") as caught:
            write_asset(folder, about(), measured(1))
    assert str(folder) in caught.value.message and "disk full" in (caught.value.hint or "")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert torch.equal(open_asset(folder).statistics(0, "k.moment"), measured()["layers.0.k.moment"])
    write_asset(folder, about(), measured(1))
    assert torch.equal(open_asset(folder).statistics(0, "k.moment"), measured(1)["layers.0.k.moment"])


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AssetError, match="cannot write the KV asset"):
        write_asset(tmp_path / "file", about(), measured())
