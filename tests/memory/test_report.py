"""What `octavo plan` answers, as a value and as a table."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from octavo.base.errors import BadValue, UnknownChoice
from octavo.kv.schemes import SCHEMES
from octavo.memory.report import BASELINE, PlanQuestion, default_dtypes, memory_report
from octavo.memory.shapes import SHAPES
from octavo.memory.tables import render

SPEC = SHAPES["llama-7b"]


def text_of(report, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(render(report))
    return out.getvalue()


def test_every_scheme_is_in_it_and_pairs_keep_keys_wider():
    rows = [row.dtype for row in memory_report("m", SPEC, PlanQuestion()).schemes]
    assert set(SCHEMES) <= set(rows) and "int8,int4" in rows and "int4,int8" not in rows
    assert rows == list(default_dtypes(SPEC.head_dim))


def test_numbers_of_llama_7b():
    report = memory_report("llama-7b", SPEC, PlanQuestion(memory_bytes=24 * 2**30))
    rows = {row.dtype: row for row in report.schemes}
    bf16, int8 = rows[BASELINE], rows["int8"]
    assert (report.tokens, report.max_model_len) == (2048, 2048)
    assert bf16.ratio_to_bf16 == 1 and bf16.bits_per_number == 16
    assert bf16.bytes_per_token == 512 * 1024
    assert bf16.sequences_that_fit == (24 * 2**30 - 2 * SPEC.parameters) // 2**30
    assert int8.total_bytes["8"] == report.weights["bytes"] + 8 * int8.bytes_per_sequence
    assert list(int8.total_bytes) == ["8", "16", "32", "48"]
    assert int8.plan == "K int8+rotation, V int8+rotation (32 layers)"


def test_it_is_json_and_a_table_says_the_same():
    report = memory_report("llama-7b", SPEC, PlanQuestion(tokens=100, memory_bytes=2**30), stored_bytes=7)
    data = json.loads(json.dumps(report.as_dict()))
    assert data["tokens"] == 100 and data["weights"]["stored_bytes"] == 7
    text = text_of(report)
    assert "the weights alone do not fit" in text
    for row in report.schemes:
        assert row.sequences_that_fit == 0
        line = next(line for line in text.splitlines() if line.split()[:1] == [row.dtype])
        assert f"{row.bits_per_number:.2f}" in line and f"{row.ratio_to_bf16:.3f}" in line


def test_the_table_fits_eighty_columns():
    report = memory_report("llama-7b", SPEC, PlanQuestion(memory_bytes=80 * 2**30))
    assert all("…" not in line for line in text_of(report, width=80).splitlines())


def test_a_choice_of_dtypes_keeps_its_order_and_spelling():
    report = memory_report("m", SPEC, PlanQuestion(dtypes=("q4_0", "fp8_e4m3", "8,4")))
    assert [row.dtype for row in report.schemes] == ["int4", "fp8", "int8,int4"]
    with pytest.raises(UnknownChoice, match="int7"):
        memory_report("m", SPEC, PlanQuestion(dtypes=("int7",)))


def test_a_head_width_that_cannot_be_packed_leaves_those_schemes_out():
    odd = replace(SPEC, head_dim=33)
    rows = [row.dtype for row in memory_report("m", odd, PlanQuestion()).schemes]
    assert "int8" in rows and "int4" not in rows and "int8,int4" not in rows
    with pytest.raises(BadValue):
        memory_report("m", odd, PlanQuestion(dtypes=("int4",)))


def test_lengths():
    long = replace(SPEC, max_position=131072)
    assert PlanQuestion().lengths(long) == (2048, 131072)
    assert PlanQuestion(max_model_len=512).lengths(long) == (512, 512)
    assert PlanQuestion(tokens=4096, max_model_len=8192).lengths(long) == (4096, 8192)
    with pytest.raises(BadValue, match="4096"):
        PlanQuestion(tokens=4096).lengths(SPEC)
    with pytest.raises(BadValue, match="more than the model's own 2048"):
        PlanQuestion(max_model_len=4096).lengths(SPEC)


@pytest.mark.parametrize(
    "wrong",
    [{"tokens": 0}, {"max_model_len": -1}, {"page_tokens": 0}, {"page_tokens": 10**9}, {"batch_sizes": ()},
     {"batch_sizes": (8, 0)}],
)  # fmt: skip
def test_questions_that_cannot_be_asked(wrong):
    with pytest.raises(BadValue):
        PlanQuestion(**wrong)


def test_small_pages_cost_more():
    """Alignment and metadata are counted, not wished away."""
    costs = [
        memory_report("m", SPEC, PlanQuestion(dtypes=("int8",), page_tokens=tokens)).schemes[0].bytes_per_token
        for tokens in (1, 16, 64)
    ]
    assert costs[0] > costs[1] >= costs[2]
