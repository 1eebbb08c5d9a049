"""From what was measured to what is done to keys and values: each transform does to that text what its name says."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo.base.errors import UsageError
from octavo.calibrate.cache_plan import CacheOptions, make_transforms, plan_for
from octavo.calibrate.forward import embed, project
from octavo.calibrate.observe import observe
from octavo.calibrate.partial import Partial
from octavo.kv.asset import KVAsset
from octavo.kv.statistics import KVStatistics, StaticRule
from octavo.kv.transform import SideTransform
from tests.calibrate.random_decoder import random_decoder

WINDOWS = [torch.randint(0, 64, (50,), generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
MODEL, LOAD = random_decoder(64, qkv_bias=True, layers=1)


def asset(folder: Path, rule: StaticRule, biased: bool = False) -> KVAsset:
    found = observe(MODEL, WINDOWS, biased, Partial(folder, ""), lambda *step: None)
    about = {"static": asdict(rule), "key_bias_stored": biased, "params_sha256": "d" * 64}
    return KVAsset(folder, about, KVStatistics(found))


def transforms(found: KVAsset | None, **options: str) -> tuple[SideTransform, SideTransform]:
    """Of the model's one layer."""
    wishes = CacheOptions(**options)  # pyright: ignore[reportArgumentType]
    (pair,) = make_transforms(plan_for(wishes, MODEL.spec, found), MODEL.spec, LOAD, MODEL.rope, "cpu")
    return pair


def seen(bias_free: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of all tokens but each window's first, as they meet the transforms."""
    found = [project(MODEL, 0, embed(MODEL, tokens)) for tokens in WINDOWS]
    queries, keys, values = ([getattr(each, name)[1:] for each in found] for name in ("q", "k", "v"))
    if bias_free:
        keys = [each.k_free[1:] for each in found]
    return torch.cat(queries), torch.cat(keys), torch.cat(values)


@pytest.mark.parametrize("rotate", ["on", "off"])
@pytest.mark.parametrize("bias_free", ["auto", "off"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["layer", "head", "channel"])
def test_static_scales_reach_to_what_was_seen(tmp_path, rotate, bias_free, symmetric, granularity):
    found = asset(tmp_path, StaticRule(granularity, symmetric, reach="peak"), biased=bias_free == "off")
    pair = transforms(found, kv_cache_dtype="int8-static", kv_rotate=rotate, kv_bias_free=bias_free)
    _, keys, values = seen(bias_free == "auto")
    for side, vectors in zip(pair, (keys, values), strict=True):
        stored = side.stored(vectors)
        tops = stored.abs().amax(0)
        reached = {"layer": tops.max()[None], "head": tops.amax(-1), "channel": tops.flatten()}[granularity]
        torch.testing.assert_close(reached, torch.full_like(reached, 127.0), rtol=1e-4, atol=0)


def test_margin(tmp_path):
    pair = transforms(asset(tmp_path, StaticRule(margin=2.0, reach="peak")), kv_cache_dtype="int8-static")
    for side, vectors in zip(pair, seen()[1:], strict=True):
        assert side.stored(vectors).abs().max() == pytest.approx(63.5, rel=1e-4)


def test_constant_takes_the_mean_of_the_keys_off(tmp_path):
    found = asset(tmp_path, StaticRule(), biased=True)
    options = {"kv_cache_dtype": "int4", "kv_bias_free": "off"}
    (key, _), (plain, _) = (transforms(found, kv_balance=how, **options) for how in ("constant", "off"))
    keys = seen(bias_free=False)[1]
    assert plain.stored(keys).mean(0).abs().max() > 1
    assert key.stored(keys).mean(0).abs().max() < 1e-4
    torch.testing.assert_close(key.query(keys), plain.query(keys))


def outer(vectors: Tensor) -> Tensor:
    """Second moments `[G, D, D]` for the two KV heads, of size 1."""
    grouped = vectors.double().unflatten(1, (MODEL.spec.kv_heads, -1))
    found = torch.einsum("tghd,tghe->gde", grouped, grouped)
    return found / found.flatten(1).norm(dim=1)[:, None, None]


@pytest.mark.parametrize("measured", [True, False], ids=["measured", "from the weights"])
def test_balance_gives_keys_and_queries_one_shape(tmp_path, measured):
    """Exactly for the moments that were measured; those from the weights are a guess, and nearer than none."""
    found = asset(tmp_path, StaticRule()) if measured else None
    queries, keys, _ = seen()

    def apart(how: str) -> float:
        side, _ = transforms(found, kv_cache_dtype="int4", kv_balance=how)
        return float((outer(side.query(queries)) - outer(side.stored(keys))).flatten(1).norm(dim=1).max())

    assert apart("on") < (0.05 if measured else 0.75 * apart("off"))
    assert apart("smooth") < apart("off")


DEFAULTS = {
    "bf16": ("bf16", "bf16"),
    "int8": ("int8+bias-free+rotation", "int8+rotation"),
    "int4": ("int4+bias-free+balance+rotation", "int4+rotation"),
    "int8,int4": ("int8+bias-free+rotation", "int4+rotation"),
    "int8-static": ("int8-static+bias-free+rotation+static", "int8-static+rotation+static"),
}


@pytest.mark.parametrize(("dtype", "want"), DEFAULTS.items(), ids=DEFAULTS)
def test_what_is_done_by_default(tmp_path, dtype, want):
    (layer,) = plan_for(CacheOptions(kv_cache_dtype=dtype), MODEL.spec, asset(tmp_path, StaticRule())).plan.layers
    assert (str(layer.key), str(layer.value)) == want


def test_constant_needs_a_calibration():
    with pytest.raises(UsageError, match="kv_balance constant needs the mean of the keys"):
        transforms(None, kv_cache_dtype="int4", kv_balance="constant")
