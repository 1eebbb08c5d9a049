"""From rows of a hand-made probe to laws, lines and crossings, each checked by hand arithmetic."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from octavo.cli.memory import render
from octavo.evals.memory_report import prove
from octavo.evals.memory_rows import MemoryRow, Probe, SkippedRow
from octavo.kv.plan import uniform_plan
from octavo.memory.law import int4_weight_bytes, weight_bytes
from octavo.memory.shapes import SHAPES

MIB = 2**20
SPEC = SHAPES["llama-7b"]
LINEAR_MIB = 6176
"""weights of the blocks' matrices / 2^20: 32 * (4 * 4096^2 + 3 * 4096 * 11008) / 2^20"""
SAVED_MIB = LINEAR_MIB * (16 - 4.5) / 8


def row(batch: int, dtype: str, device_mib: float | None, process_mib: float = 900.0) -> MemoryRow:
    return MemoryRow(batch, dtype, process_mib, device_mib, 528.0 * batch, 32 * batch, 1.0)


BF16 = [row(batch, "bf16", 14000.0 + 1024 * batch) for batch in (8, 16, 32)]
INT8 = [row(batch, "int8", 14010.0 + 528 * batch + off) for batch, off in ((8, 1), (16, -2), (24, 1))]
PROBE = Probe(
    name="llama", spec=SPEC, dtype="float16", device="cuda", tokens=2048, fill="generate",
    kernels={"bf16": "triton", "int8": "triton"}, rows=(*BF16, *INT8),
    plans={name: uniform_plan(name, SPEC.layers, SPEC.head_dim) for name in ("bf16", "int8")},
    skipped=(SkippedRow(48, "bf16", 49152.0, 40000.0),), runtime_mib={"bf16": 700.0, "int8": 710.0},
    resident_mib={"bf16": 13000.0, "int8": 13002.0},
)  # fmt: skip


def said(probe: Probe) -> str:
    out = io.StringIO()
    Console(file=out, width=140).print(render(prove(probe)))
    return out.getvalue()


def test_law_of_each_cache():
    law = prove(PROBE).law
    assert list(law) == ["bf16", "int8"]
    bf16, int8 = law["bf16"], law["int8"]
    assert (bf16.intercept_mib, bf16.slope_mib) == pytest.approx((14000.0, 1024.0))
    assert bf16.max_residual_mib == pytest.approx(0.0, abs=1e-9)
    assert (bf16.predicted_intercept_mib, bf16.predicted_slope_mib) == (13700.0, 1024.0)
    assert (int8.predicted_intercept_mib, int8.predicted_slope_mib) == (13712.0, 528.0)
    assert (int8.intercept_mib, int8.slope_mib) == pytest.approx((14010.0, 528.0))
    assert int8.max_residual_mib == pytest.approx(2.0)


def test_weights_in_int4_by_arithmetic():
    assert (weight_bytes(SPEC, "float16") - int4_weight_bytes(SPEC)) / MIB == SAVED_MIB
    wide = weight_bytes(SPEC, "float32") - int4_weight_bytes(SPEC, "float32")
    assert wide / MIB == LINEAR_MIB * (32 - 4.5) / 8  # what is not in a block's matrices stays as it is


def test_lines_and_crossings():
    proof = prove(PROBE)
    assert {name: line.measured for name, line in proof.lines.items()} == {
        "KV bf16": True, "KV int8": True, "weights int4, KV bf16": False, "weights int4, KV int8": False,
    }  # fmt: skip
    for cache, intercept, slope in (("bf16", 14000.0, 1024.0), ("int8", 14010.0, 528.0)):
        line = proof.lines[f"weights int4, KV {cache}"]
        assert (line.intercept_mib, line.slope_mib) == pytest.approx((intercept - SAVED_MIB, slope))
    (cross,) = proof.crossings
    assert (cross.first, cross.second) == ("weights int4, KV bf16", "KV int8")
    assert cross.batch == pytest.approx((14010 - 14000 + SAVED_MIB) / (1024 - 528))


def test_json():
    data = json.loads(json.dumps(prove(PROBE).as_dict()))
    assert data["rows"][0] == {
        "batch": 8, "dtype": "bf16", "process_mib": 900.0, "device_mib": 22192.0, "kv_mib": 4224.0, "pages": 256,
        "seconds": 1.0, "difference_mib": 0.0,
    }  # fmt: skip
    differences = {(row["batch"], row["dtype"]): row.get("difference_mib") for row in data["rows"]}
    assert differences[8, "int8"] == 14011 + 528 * 8 - 22192
    assert differences[24, "int8"] is None  # bf16 was not measured there
    assert data["skipped"] == [{"batch": 48, "dtype": "bf16", "needed_mib": 49152.0, "free_mib": 40000.0}]
    assert data["law"]["int8"]["predicted_slope_mib"] == 528.0
    assert data["weights_mib"] == weight_bytes(SPEC, "float16") / MIB


def test_without_a_device_the_process_is_what_counts():
    rows = tuple(row(batch, "bf16", None, process_mib=500.0 + 3 * batch) for batch in (2, 4))
    law = prove(replace(PROBE, device="cpu", rows=rows)).law["bf16"]
    assert (law.intercept_mib, law.slope_mib) == pytest.approx((500.0, 3.0))


def test_a_cache_measured_at_one_batch_has_no_law():
    proof = prove(replace(PROBE, rows=(*BF16, INT8[0])))
    assert list(proof.law) == ["bf16"] and proof.crossings == ()
    assert list(proof.lines) == ["KV bf16", "weights int4, KV bf16"]


def test_nothing_measured():
    probe = replace(PROBE, rows=())
    proof = prove(probe)
    assert (proof.law, proof.lines, proof.crossings) == ({}, {}, ())
    assert "not tried: bf16 at batch 48 needs 49,152 MiB of pages and 40,000 MiB are free" in said(probe)
    assert "intercept" not in said(probe)


def test_table():
    text = said(PROBE)
    assert "22,192 (4,224)" in text and f"{14011 + 528 * 8 - 22192:+,.0f}" in text
    assert "528.00 (528.00, +0.00%)" in text
    assert f"take the same at a batch of {(10 + SAVED_MIB) / 496:.1f}" in text
    assert "weights int4: by arithmetic, 4.5 bits" in text
