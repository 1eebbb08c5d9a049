"""Caches that are really filled: what rows say beside the law's arithmetic and the tensors themselves."""

import gc
import json
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from octavo.base.errors import BadValue, CapacityError, OctavoError, UnknownChoice, UsageError
from octavo.cli import main
from octavo.engine.runner import Runner
from octavo.evals import memory_probe, memory_reading
from octavo.evals.memory_fill import FILLS, Job
from octavo.evals.memory_probe import ProbeOptions, run_probe
from octavo.evals.memory_report import prove
from octavo.evals.stand_in import (
    plan_without_numbers,
    random_weights,
    resident_bytes,
    scaled,
    stand_in_transforms,
)
from octavo.kernels.choice import choose
from octavo.kv.pool import PagePool
from octavo.memory.law import memory_law
from octavo.memory.shapes import SHAPES
from octavo.models.dense import DenseDecoder
from octavo.models.spec import ModelSpec, RopeSpec

MIB = 2**20
CACHES = ("bf16", "int8-static", "int8,int4", "int4")
SMALL = ModelSpec(
    family="llama", layers=2, width=96, mlp_width=128, heads=6, kv_heads=2, head_dim=64, vocab_size=320,
    max_position=2048, rope=RopeSpec(rotary_dim=64),
)  # fmt: skip


def filled(cache: str, fill: str) -> tuple[PagePool, int, list[int]]:
    """A pool of 0xFF filled with three sequences of 128 tokens, the pages held, and what was said on the way."""
    plan, stored = plan_without_numbers(cache, SMALL), []
    model = DenseDecoder(SMALL, random_weights(SMALL, torch.float32, "cpu"), 129, "cpu")
    transforms = stand_in_transforms(plan, SMALL, "cpu")
    pool = PagePool(plan, plan.layouts(2, 64), 6, "cpu", fill=0xFF, transforms=transforms)
    job = Job(3, 128, 100, SMALL.vocab_size, stored.append)
    return pool, FILLS[fill](Runner(model, pool, choose("auto", "cpu", plan).impl), job, False), stored


@pytest.fixture(autouse=True)
def quick_collections(monkeypatch):
    """Every row collects garbage, and to walk all that the libraries hold takes 0.1 s; the young will do."""
    young = SimpleNamespace(collect=lambda: gc.collect(0))
    monkeypatch.setattr(memory_probe, "gc", young)
    monkeypatch.setattr(memory_reading, "gc", young)


def probe(**changes):
    options = {"shape": ("small", SMALL), "batch_sizes": (1, 3), "dtype": "float32", "device": "cpu"} | changes
    return run_probe(ProbeOptions(**options), lambda *step: None)


@pytest.mark.parametrize("fill", FILLS)
def test_rows_of_a_checkpoint_are_the_law(checkpoint, fill):
    found = probe(model=checkpoint("llama")[0], shape=None, dtypes=CACHES, tokens=70, fill=fill)
    assert [(row.dtype, row.batch) for row in found.rows] == [(cache, batch) for cache in CACHES for batch in (1, 3)]
    for row in found.rows:
        law = memory_law(found.spec, found.plans[row.dtype])
        layouts = found.plans[row.dtype].layouts(2, 64)
        pool = PagePool(
            found.plans[row.dtype], layouts, 2 * row.batch, "meta",
            transforms=stand_in_transforms(found.plans[row.dtype], found.spec, "meta"),
        )  # fmt: skip
        assert row.pages == 2 * row.batch  # 70 tokens hold two pages of 64
        assert row.kv_mib * MIB == row.batch * law.sequence_bytes(70) == pool.allocated_bytes
        assert row.device_mib is None and row.process_mib > row.kv_mib


@pytest.mark.parametrize("fill", FILLS)
def test_a_fill_writes_every_slot(fill):
    """0xFF is NaN in bf16, so a slot that nobody wrote would show."""
    pool, held, stored = filled("bf16", fill)
    assert held == 6 and sum(stored) == 3 * 128
    for layer in pool.layers:
        for slot in (layer.layout.key_slots[0], layer.layout.value_slots[0]):
            assert layer.plane(slot).isfinite().all()


def test_the_process_grows_with_the_pool():
    wide = ModelSpec(
        family="llama", layers=8, width=64, mlp_width=64, heads=16, kv_heads=16, head_dim=64, vocab_size=320,
        max_position=2048, rope=RopeSpec(rotary_dim=64),
    )  # fmt: skip
    found = probe(shape=("wide", wide), dtypes=("bf16",), batch_sizes=(1, 9), tokens=256, fill="prefill")
    first, last = found.rows
    assert last.kv_mib - first.kv_mib == 8 * 8 == 8 * prove(found).law["bf16"].predicted_slope_mib
    assert last.process_mib - first.process_mib == pytest.approx(64, abs=8)


def test_short_prompts_can_be_prefilled():
    """The scheduler would not admit several sequences of one page at once; nothing on the way asks it to."""
    found = probe(dtypes=("bf16",), batch_sizes=(2, 4), tokens=64, fill="prefill")
    assert [row.pages for row in found.rows] == [2, 4]


def test_what_does_not_fit_is_not_tried():
    found = probe(dtypes=("int8",), batch_sizes=(1, 2, 10**9), tokens=64, fill="prefill")
    assert [row.batch for row in found.rows] == [1, 2]
    (skipped,) = found.skipped
    assert skipped.batch == 10**9 and skipped.needed_mib > skipped.free_mib
    assert skipped.needed_mib == 10**9 * memory_law(SMALL, found.plans["int8"]).sequence_bytes(64) / MIB


def test_weights_that_do_not_fit_are_refused_before_any_is_made(monkeypatch):
    monkeypatch.setattr(memory_probe, "device_memory", lambda device: (1000, 2000))
    monkeypatch.setattr(memory_probe, "random_weights", None)
    with pytest.raises(CapacityError, match="the weights take"):
        probe(dtypes=("bf16",), tokens=64, fill="prefill")


SPECS = {
    "untied": SMALL,
    "tied": replace(SMALL, tied_embeddings=True),
    "key bias, one KV head": replace(SMALL, qkv_bias=True, kv_heads=1),
}


def tensors(thing: object) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict | list | tuple):
        for part in thing.values() if isinstance(thing, dict) else thing:
            yield from tensors(part)
    elif type(thing).__module__.startswith("octavo."):
        yield from tensors(vars(thing))


def bytes_of(*things: object) -> int:
    """Bytes of every tensor that can be reached, those that share memory once. oneDNN's own have no address."""
    found = {}
    for tensor in tensors(things):
        key = id(tensor) if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()
        found[key] = tensor.numel() * tensor.itemsize if tensor.is_mkldnn else tensor.untyped_storage().nbytes()
    return sum(found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_resident_bytes_are_those_of_the_tensors(name, dtype):
    spec = SPECS[name]
    model = DenseDecoder(spec, random_weights(spec, dtype, "cpu"), 101, "cpu")
    for cache in ("bf16", "int8-static", "int4"):
        plan = plan_without_numbers(cache, spec)
        made = stand_in_transforms(plan, spec, "cpu")
        copies = bytes_of(made)  # CPU kernels lay transforms out again
        assert resident_bytes(spec, plan, dtype, "cpu", 101) == bytes_of(model, made) + copies


def test_a_padded_head_is_counted_on_a_gpu():
    plan, spec = plan_without_numbers("bf16", SMALL), replace(SMALL, vocab_size=330)
    host, gpu = (resident_bytes(spec, plan, torch.float16, device, 101) for device in ("cpu", "cuda:0"))
    assert gpu - host == (384 - 330) * 96 * 2


def test_plans_are_those_of_the_engine():
    biased = SPECS["key bias, one KV head"]
    plan = plan_without_numbers("int8-static", biased)
    assert plan.name == "int8-static"
    assert plan.layers[0].key.bias_free and plan.layers[0].key.fitted == plan.layers[0].value.fitted == ("static",)
    mixed = plan_without_numbers("int4,int8-static", SMALL)
    assert mixed.layers[0].key.fitted == ("balance",) and mixed.layers[0].value.fitted == ("static",)


def test_scaled():
    half = scaled(SHAPES["llama-3-8b"], 0.5)
    assert (half.layers, half.width, half.heads, half.kv_heads, half.mlp_width) == (16, 2048, 16, 4, 7168)
    assert (half.head_dim, half.vocab_size) == (128, 128256)
    least = scaled(SHAPES["llama-3-8b"], 0.001)
    assert (least.layers, least.width, least.heads, least.kv_heads) == (1, 64, 4, 1)
    for factor in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(BadValue, match="scale"):
            scaled(SMALL, factor)


def test_the_verb(tmp_path, capsys):
    out = tmp_path / "out.json"
    words = ["memory", "--shape", "llama-7b", "--scale", "0.03", "--kv-cache-dtype", "fp8_e4m3,int8/int4"]
    words += ["--batch-sizes", "3,1", "--tokens", "64", "--fill", "prefill", "--dtype", "fp32", "--device", "cpu"]
    assert main([*words, "--json", str(out), "--chart", str(tmp_path / "chart")]) == 0
    text = capsys.readouterr().out
    assert "llama-7b x 0.03: B sequences of 64 tokens, computed in float32 on cpu" in text
    data = json.loads(out.read_text())
    assert [(row["batch"], row["dtype"]) for row in data["rows"]] == [
        (1, "fp8"), (3, "fp8"), (1, "int8,int4"), (3, "int8,int4"),
    ]  # fmt: skip
    assert {"process_mib", "device_mib", "kv_mib"} <= set(data["rows"][0])
    assert data["rows"][0]["kv_mib"] == 2 * 64 * 128 / MIB == data["law"]["fp8"]["predicted_slope_mib"]
    assert {"intercept_mib", "slope_mib", "max_residual_mib"} <= set(data["law"]["int8,int4"])
    assert (tmp_path / "chart.png").stat().st_size > 0 and (tmp_path / "chart.svg").stat().st_size > 0


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"model": "smollm2"}, UsageError, "either a model or a shape"),
        ({"shape": None}, UsageError, "either a model or a shape"),
        ({"batch_sizes": (8,)}, BadValue, "batch sizes: 8 "),
        ({"batch_sizes": (8, 8)}, BadValue, "two different"),
        ({"batch_sizes": (0, 8)}, BadValue, "from 1"),
        ({"dtypes": ()}, BadValue, "caches: none"),
        ({"dtypes": ("fp8", "fp8_e4m3")}, BadValue, "each once"),
        ({"dtypes": ("int7",)}, UnknownChoice, "int7"),
        ({"dtype": "float99"}, UnknownChoice, "unknown compute dtype: `float99`"),
        ({"dtype": "int8"}, UnknownChoice, "unknown compute dtype: `int8`"),
        ({"tokens": 1}, BadValue, "tokens: 1 "),
        ({"tokens": 2049}, BadValue, "longer than the model's own limit 2048"),
        ({"tokens": 64, "fill": "generate"}, BadValue, "generation fills more than a page"),
        ({"fill": "pour"}, UnknownChoice, "unknown fill: `pour`"),
    ],
)
def test_options_that_cannot_be(changes, kind: type[OctavoError], says):
    with pytest.raises(kind, match=says):
        probe(**changes)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["smollm2", "--shape", "llama-7b"], "either a model or a shape"),
        (["smollm2", "--scale", "0.5"], "--scale goes with --shape"),
        (["--shape", "llama-7b", "--scale", "2"], "scale: 2"),
        (["--shape", "llama-7b", "--batch-sizes", "8"], "a line needs two"),
        (["--shape", "llama-7b", "--chart", "lines.pdf"], "ends in .png or .svg"),
        (["--shape", "llama-7b", "--chart", "."], "ends in .png or .svg"),
        (["--shape", "llama-7b", "--chart", "nowhere/lines.png"], "there is no folder `nowhere`"),
    ],
)
def test_mistakes_on_the_command_line(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["memory", *words]) == 2
    assert says in capsys.readouterr().err
