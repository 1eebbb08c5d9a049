"""Calibration end to end: what it writes, that it repeats, which plan an engine takes from it, and what that costs.

Engines run on the reference kernels: nothing is compiled, and what is compared is arithmetic.
"""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.base.errors import AssetError, BadValue, CapacityError, OctavoError, UsageError
from octavo.calibrate import partial as partials
from octavo.calibrate.budgets import solve_budget
from octavo.calibrate.cache_plan import CacheOptions, CachePlan, make_transforms, plan_for
from octavo.calibrate.choose import Bench, choose, predicted
from octavo.calibrate.divergence import Divergence, measure
from octavo.calibrate.run import CalibrateOptions, Calibration, calibrate
from octavo.calibrate.sensitivity import measure_plan
from octavo.calibrate.solve import parse_budget
from octavo.checkpoint import open_checkpoint
from octavo.checkpoint.load import weight_loader
from octavo.engine.llm import LLM
from octavo.kv.asset import PARAMS_FILE, PLAN_FILE, open_asset
from octavo.models.dense import DenseDecoder
from tests.engine.conftest import write_byte_tokenizer

ENGINE = {"dtype": "float32", "kernels": "reference", "kv_cache_memory": "1024tok"}
SMALL = CalibrateOptions(model="", out="", samples=4, seqlen=64, sensitivity_tokens=32, dtype="float32")


def run(model: str, out: Path, progress: Callable[..., Any] = lambda *step: None, **changes: Any) -> Calibration:
    """A small calibration on the bundled text."""
    return calibrate(replace(SMALL, model=model, out=str(out), charts=False, **changes), progress)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def exact(readable) -> LLM:
    """The tiny Llama with its weights shared: other caches of it are `exact.with_cache(...)`."""
    return LLM(readable, **ENGINE, kv_cache_dtype="fp32", kv_asset="off")


@pytest.fixture(scope="module")
def plain_asset(readable, tmp_path_factory) -> str:
    """Without sensitivities, for a plan that is not the default."""
    out = tmp_path_factory.mktemp("plain")
    run(readable, out, cache=CacheOptions(kv_cache_dtype="int8,int4"))
    return str(out)


# what is written


def test_the_plan_says_everything(tiny_asset, exact):
    plan = json.loads((Path(tiny_asset) / PLAN_FILE).read_text())
    assert plan["model"] == exact.source.name and len(plan["fingerprint"]) == 64
    data = plan["data"]
    assert (data["name"], data["samples"], data["seqlen"], data["seed"]) == ("text.txt", 8, 256, 0)
    assert len(data["digest"]) == len(data["windows_digest"]) == 64
    rotated = {"scheme": "int8", "transforms": ["rotation"]}
    assert plan["layers"] == [{"k": rotated, "v": rotated}] * 2
    cache = exact.with_cache(kv_asset=tiny_asset, kv_cache_dtype="auto").cache
    assert plan["bytes_per_token"] == cache.bytes_per_token
    assert 0 < plan["kl_measured"] < 1e-3 and plan["tokens_measured"] == 4 * 128
    alone = plan["sensitivity"]
    assert plan["kl_predicted"] == pytest.approx(sum(sum(alone[side]["int8"]) for side in "kv"))
    assert all(0 < a < b for side in "kv" for a, b in zip(alone[side]["int8"], alone[side]["int4"], strict=True))
    assert [(row["layer"], row["side"]) for row in plan["outliers"]] == [(0, "k"), (0, "v"), (1, "k"), (1, "v")]


def test_without_sensitivities_nothing_is_predicted(plain_asset):
    plan = json.loads((Path(plain_asset) / PLAN_FILE).read_text())
    assert plan["kl_predicted"] is None and plan["kl_measured"] > 0
    layer = {"k": {"scheme": "int8", "transforms": ["rotation"]}, "v": {"scheme": "int4", "transforms": ["rotation"]}}
    assert plan["layers"] == [layer] * 2


def test_one_seed_one_asset(readable, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("other", 4)):
        run(readable, tmp_path / name, seed=seed, sensitivity=True)
    first, again, other = (files(tmp_path / name) for name in ("a", "b", "other"))
    assert sorted(first) == [PARAMS_FILE, PLAN_FILE]
    assert first == again
    assert first[PARAMS_FILE] != other[PARAMS_FILE]


def test_an_interrupted_run_ends_with_the_same_asset(readable, tmp_path, monkeypatch):
    run(readable, tmp_path / "whole", sensitivity=True)
    monkeypatch.setattr(partials, "_KEPT_EVERY_SECONDS", 0.0)
    for stage, steps in (("statistics", 2), ("sensitivity", 3)):

        def stop(what: str, done: int, total: int, at: tuple[str, int] = (stage, steps)) -> None:
            if (what, done) == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(readable, tmp_path / "cut", stop, sensitivity=True)
        assert list(files(tmp_path / "cut")) == ["calibration.partial"]
    run(readable, tmp_path / "cut", sensitivity=True)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


# which plan an engine takes


def test_an_engine_takes_the_plan_of_its_asset(exact, plain_asset):
    cache = exact.with_cache(kv_asset=plain_asset, kv_cache_dtype="auto").cache
    assert cache.dtype == "int8,int4" and cache.plan == "K int8+rotation, V int4+rotation (2 layers)"
    assert plain_asset in cache.plan_source
    assert exact.with_cache(kv_asset=plain_asset, kv_cache_dtype="int4").cache.dtype == "int4"


def test_an_option_beside_an_asset_is_followed(exact, plain_asset):
    cache = exact.with_cache(kv_asset=plain_asset, kv_cache_dtype="auto", kv_rotate="off").cache
    assert (
        "rotation" not in cache.plan
        and cache.dtype == exact.with_cache(kv_asset=plain_asset, kv_cache_dtype="auto").cache.dtype
    )


def test_an_asset_beside_the_weights_is_found(readable, plain_asset, tmp_path):
    shutil.copytree(readable, tmp_path / "model")
    shutil.copytree(plain_asset, tmp_path / "model" / "kv_asset")
    found = LLM(str(tmp_path / "model"), **ENGINE).cache
    assert found.dtype == "int8,int4" and str(tmp_path / "model" / "kv_asset") in found.plan_source
    off = LLM(str(tmp_path / "model"), **ENGINE, kv_asset="off").cache
    assert (off.dtype, off.plan_source) == ("int8", "default")


BUDGETS = ("5bit", "6.5bit", "0.4KiB/token", "350KiB", "kl<0.002", "kl<0.0001")


@pytest.mark.parametrize("budget", BUDGETS)
def test_budgets_are_kept_and_their_bytes_are_those_of_the_cache(exact, tiny_asset, budget):
    sizes = {"max_model_len": 256, "max_num_seqs": 4}
    llm = exact.with_cache(kv_asset=tiny_asset, kv_cache_dtype=f"auto:{budget}", **sizes)
    cache, asset, asked = llm.cache, open_asset(tiny_asset), parse_budget(budget)
    solved, names = solve_budget(asked, asset.about["sensitivity"], asset.about["shape"], 64, 1024)
    assert cache.bytes_per_token == solved.page_bytes / 64 == cache.allocated_bytes / (64 * cache.pages)
    assert len(names) == 2 and cache.dtype == f"auto:{budget}" and tiny_asset in cache.plan_source
    numbers = 2 * 2 * 2 * 64
    for most, got in (
        (asked.bits, cache.bytes_per_token * 8 / numbers), (asked.token_bytes, cache.bytes_per_token),
        (asked.total_bytes, cache.bytes_per_token * 1024), (asked.kl, solved.kl),
    ):  # fmt: skip
        assert most is None or got <= most
    assert 272 <= cache.bytes_per_token < 544, "neither below int4 nor all int8"


def test_a_calibration_for_a_budget_writes_its_plan(readable, exact, tmp_path):
    about = run(readable, tmp_path, cache=CacheOptions(kv_cache_dtype="auto:6.5bit")).about
    assert about["kv_cache_dtype"] == "auto:6.5bit" and about["bits_per_number"] <= 6.5
    assert len({layer[side]["scheme"] for layer in about["layers"] for side in "kv"}) == 2
    cache = exact.with_cache(kv_asset=str(tmp_path), kv_cache_dtype="auto").cache
    assert (cache.dtype, cache.bytes_per_token) == ("auto:6.5bit", about["bytes_per_token"])


def test_a_budget_of_divergence_holds_where_it_is_measured(readable, tmp_path):
    about = run(readable, tmp_path, cache=CacheOptions(kv_cache_dtype="auto:kl<0.001")).about
    assert about["kl_measured"] <= 0.001
    assert about["bytes_per_token"] < 544


class Pessimist(Bench):
    """A bench on which every plan measures three times what was predicted of it."""

    def measure(self, cache: CachePlan, windows: Sequence[torch.Tensor]) -> Divergence:
        told = predicted(self.asset.about["sensitivity"], cache)
        assert told is not None
        return Divergence(1, 3 * told, 0, 0, 0, 1)


@pytest.mark.parametrize("good", [True, False])
def test_a_budget_of_divergence_that_does_not_hold_is_solved_again(exact, tiny_asset, caplog, good):
    asset: Any = open_asset(tiny_asset)
    bench = Pessimist(exact.source, cast(Any, None), cast(Any, None), "cpu", asset)
    alone = asset.about["sensitivity"]
    exactly = sum(sum(alone[side]["int8"]) for side in "kv")  # the best there is, as predicted
    allowed = 20 * exactly if good else 2 * exactly
    wishes = CacheOptions(kv_cache_dtype=f"auto:kl<{allowed}")
    once = bench.plan(wishes)
    assert bench.measure(once, []).kl_mean > allowed
    cache, found = choose(bench, wishes, [])
    assert cache.plan.name == wishes.kv_cache_dtype and found == bench.measure(cache, [])
    assert (found.kl_mean <= allowed) == good
    assert ("above the" in caplog.text) == (not good)


# what is refused


def refused(act: Callable[[], object], *words: str, kind: type[OctavoError] = AssetError) -> None:
    with pytest.raises(kind) as caught:
        act()
    assert all(word in caught.value.message for word in words), caught.value.message
    assert caught.value.hint


def test_a_budget_without_sensitivities(exact, plain_asset):
    refused(lambda: exact.with_cache(kv_asset=plain_asset, kv_cache_dtype="auto:5bit"), "no sensitivities", "auto:5bit")


def test_a_budget_or_static_scales_without_an_asset(exact):
    refused(lambda: exact.with_cache(kv_cache_dtype="auto:5bit"), "needs a calibration", kind=UsageError)
    refused(lambda: exact.with_cache(kv_cache_dtype="int8-static"), "needs scales from a calibration", kind=UsageError)


def test_a_budget_that_allows_no_plan(exact, tiny_asset):
    options = {"kv_asset": tiny_asset, "kv_cache_dtype": "auto:4bit"}
    refused(lambda: exact.with_cache(**options), "no plan fits", kind=CapacityError)


def test_an_asset_that_is_not_there(exact, tmp_path):
    refused(lambda: exact.with_cache(kv_asset=str(tmp_path)), str(tmp_path), "kv_plan.json is not there")


def test_an_asset_of_another_shape(checkpoint, tiny_asset):
    folder, _ = checkpoint("llama", head_dim=16)
    refused(lambda: LLM(folder, **ENGINE, kv_asset=tiny_asset), "'head_dim': 64", "'head_dim': 16")


@pytest.mark.parametrize("weight", ["k_proj", "v_proj"])
def test_an_asset_of_other_weights(readable, tiny_asset, tmp_path, weight):
    shutil.copytree(readable, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors[f"model.layers.1.self_attn.{weight}.weight"][0, 0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    refused(lambda: LLM(str(tmp_path / "model"), **ENGINE, kv_asset=tiny_asset), "calibrated on", "fingerprint")


BAD_OPTIONS = {
    "--seqlen 2048 or less": {"seqlen": 4096},
    "--sensitivity-tokens 2048 or less": {"sensitivity_tokens": 4096},
    "sensitivity tokens: 8 ": {"sensitivity_tokens": 8},
    "`int8,int4` is a pair": {"schemes": ("int8", "int8,int4")},
    "not a budget for the cache: `lots`": {"cache": CacheOptions(kv_cache_dtype="auto:lots")},
}


@pytest.mark.parametrize(("message", "changes"), BAD_OPTIONS.items(), ids=BAD_OPTIONS)
def test_options_that_cannot_be(readable, tmp_path, message, changes):
    with pytest.raises(BadValue, match=re.escape(message)):
        run(readable, tmp_path, **changes)
    assert not list(tmp_path.iterdir())


# what is measured without a cache is what the cache does

SIDES = {
    "int8": {"kv_cache_dtype": "int8"},
    "int4": {"kv_cache_dtype": "int4"},
    "int4, smoothed": {"kv_cache_dtype": "int4", "kv_balance": "smooth"},
    "int8-static": {"kv_cache_dtype": "int8-static"},
    "mixed": {"kv_cache_dtype": "auto:6.5bit"},
}


def both_measures(llm: LLM, asset_folder: str, texts: list[list[int]], **cache: Any) -> tuple[float, float]:
    """Mean KL to an fp32 cache: as calibration measures it, and of what a real engine's score says."""
    asset, source = open_asset(asset_folder), open_checkpoint(llm.options.model)
    load = weight_loader(source, torch.float32, "cpu")
    model = DenseDecoder(source.spec, load, source.spec.max_position, "cpu")
    planned = plan_for(CacheOptions(**cache), source.spec, asset)
    transforms = make_transforms(planned, source.spec, load, model.rope, "cpu")
    windows = [torch.tensor(ids) for ids in texts]
    told = measure_plan(model, windows, planned.plan, transforms).kl_mean
    scored = llm.with_cache(kv_asset=asset_folder, **cache).score(texts)
    return told, measure(list(zip(llm.score(texts), scored, strict=True))).kl_mean


@pytest.mark.parametrize("cache", SIDES.values(), ids=SIDES)
def test_a_plan_measures_what_the_engine_does(exact, tiny_asset, prompts, cache):
    told, real = both_measures(exact, tiny_asset, prompts[4:], **cache)
    assert real > 1e-6
    assert told == pytest.approx(real, rel=0.03)


# a model with a large key bias


@pytest.fixture(scope="module")
def biased(biased_checkpoint) -> LLM:
    folder, _ = biased_checkpoint(16)
    write_byte_tokenizer(Path(folder))
    return LLM(folder, **ENGINE, kv_cache_dtype="fp32", kv_asset="off")


@pytest.fixture(scope="module")
def biased_asset(biased, tmp_path_factory) -> str:
    """Of windows longer than what is served below: what RoPE does at later positions is then in the moments."""
    out = tmp_path_factory.mktemp("biased_asset")
    run(biased.options.model, out, samples=16, seqlen=512)
    return str(out)


@pytest.mark.parametrize("dtype", ["int4,bf16", "int4"])
def test_an_asset_serves_a_biased_model_no_worse(biased, biased_asset, dtype):
    ids = torch.randint(3, 320, (20, 240), generator=torch.Generator().manual_seed(7)).tolist()
    want = biased.score(ids)

    def kl(**cache: Any) -> float:
        other = biased.with_cache(kv_cache_dtype=dtype, **cache)
        assert "K int4+bias-free+balance+rotation" in other.cache.plan
        return measure(list(zip(want, other.score(ids), strict=True))).kl_mean

    measured, guessed = kl(kv_asset=biased_asset), kl(kv_asset="off")
    assert measured <= 1.02 * guessed, f"{dtype}: KL {measured:.2e} with the asset, {guessed:.2e} without"


@pytest.mark.parametrize("dtype", ["int8", "int4", "int8-static"])
def test_a_plan_of_a_biased_model_measures_what_the_engine_does(biased, biased_asset, prompts, dtype):
    told, real = both_measures(biased, biased_asset, prompts[4:], kv_cache_dtype=dtype)
    assert told == pytest.approx(real, rel=0.03)


def test_keys_are_stored_as_they_were_calibrated(biased, biased_asset, tmp_path):
    asset = open_asset(biased_asset)
    assert not asset.about["key_bias_stored"]
    # the bias of 60 is seen, and what is stored does without it
    assert asset.statistics(0, "k.biased.absmax").max() > 55 > 3 * asset.statistics(0, "k.absmax").max()
    options = {"kv_asset": biased_asset, "kv_cache_dtype": "int4"}
    refused(lambda: biased.with_cache(**options, kv_bias_free="off"), "without their bias", kind=UsageError)
    run(biased.options.model, tmp_path, cache=CacheOptions(kv_bias_free="off"))
    assert open_asset(tmp_path).statistics(0, "k.absmax").max() > 55
    options["kv_asset"] = str(tmp_path)
    refused(lambda: biased.with_cache(**options), "with their bias", kind=UsageError)
    assert "bias-free" not in biased.with_cache(**options, kv_bias_free="off").cache.plan
