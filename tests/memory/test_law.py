"""The memory law against hand arithmetic, published figures and the bytes that a pool really allocates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.base.errors import BadValue
from octavo.kv.plan import uniform_plan
from octavo.kv.pool import PagePool
from octavo.kv.schemes import SCHEMES
from octavo.memory.law import MemoryLaw, memory_law, weight_bytes
from octavo.memory.shapes import SHAPES
from octavo.models.spec import ModelSpec

MIB = 2**20
CHOICES = [*SCHEMES, "int8,int4", "int4,int8", "bf16,int4"]


def law_of(spec: ModelSpec, dtype: str, page_tokens: int = 64, fixed_bytes: int = 0) -> MemoryLaw:
    return memory_law(spec, uniform_plan(dtype, spec.layers, spec.head_dim), page_tokens, fixed_bytes)


@pytest.mark.parametrize(
    ("dtype", "low_mib", "high_mib"),
    [("bf16", 1024, 1024), ("int8", 520, 528), ("int4", 272, 300), ("int8,int4", 400, 400), ("fp8", 512, 512)],
)
@pytest.mark.parametrize("shape", ["llama-7b", "chinese-llama-alpaca-7b"])
def test_llama_7b_at_2048_tokens(shape, dtype, low_mib, high_mib):
    assert low_mib <= law_of(SHAPES[shape], dtype).sequence_bytes(2048) / MIB <= high_mib


def test_slope_of_a_published_measurement():
    """Chinese-LLaMA-Alpaca 7B, fp16: 1028 MiB for each slot of 2056 tokens, here in whole pages."""
    law = law_of(SHAPES["chinese-llama-alpaca-7b"], "fp16")
    exact = 2 * 32 * 32 * 2056 * 128 * 2
    assert exact == 1028 * MIB
    assert exact <= law.sequence_bytes(2056) < exact + law.page_bytes


@pytest.mark.parametrize("dtype", CHOICES)
@pytest.mark.parametrize("page_tokens", [16, 64])
@pytest.mark.parametrize("shape", ["llama-3-8b", "qwen2.5-7b"])
def test_law_is_what_a_pool_allocates(shape, page_tokens, dtype):
    spec = SHAPES[shape]
    plan = uniform_plan(dtype, spec.layers, spec.head_dim)
    pool = PagePool(plan, plan.layouts(spec.kv_heads, spec.head_dim, page_tokens), num_pages=2, device="meta")
    assert law_of(spec, dtype, page_tokens).sequence_bytes(2 * page_tokens) == pool.allocated_bytes


def test_pages_round_up():
    law = MemoryLaw((100, 50), page_tokens=64, numbers_per_token=8)
    assert [law.pages(tokens) for tokens in (0, 1, 63, 64, 65, 128)] == [0, 1, 1, 1, 2, 2]
    assert law.sequence_bytes(65) == 300
    assert law.bytes_per_token == 150 / 64
    assert law.bits_per_number == 8 * 150 / 64 / 8


@given(
    memory=st.integers(0, 10**12),
    fixed=st.integers(0, 10**11),
    tokens=st.integers(1, 10**5),
    dtype=st.sampled_from(CHOICES),
)
def test_what_fits_fits_and_one_more_does_not(memory, fixed, tokens, dtype):
    law = law_of(SHAPES["llama-3-8b"], dtype, fixed_bytes=fixed)
    count = law.sequences_that_fit(memory, tokens)
    if count:
        assert law.total_bytes(count, tokens) <= memory
    assert law.total_bytes(count + 1, tokens) > memory
    pages = law.pages_that_fit(memory)
    assert count * law.pages(tokens) <= pages


def test_total_is_a_straight_line():
    law = law_of(SHAPES["llama-7b"], "int8", fixed_bytes=1000)
    totals = [law.total_bytes(batch, 2048) for batch in (0, 8, 16)]
    assert totals[0] == 1000
    assert totals[2] - totals[1] == totals[1] - totals[0] == 8 * law.sequence_bytes(2048)


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [("llama-7b", 6_738_415_616), ("chinese-llama-alpaca-7b", 6_885_494_784), ("llama-3-8b", 8_030_261_248),
     ("qwen2.5-7b", 7_615_616_512)],
)  # fmt: skip
def test_shapes_have_the_published_number_of_parameters(shape, parameters):
    assert SHAPES[shape].parameters == parameters
    assert weight_bytes(SHAPES[shape], "bfloat16") == 2 * parameters
    assert weight_bytes(SHAPES[shape], "float32") == 4 * parameters


def test_unknown_weight_dtype():
    with pytest.raises(BadValue, match="int7"):
        weight_bytes(SHAPES["llama-7b"], "int7")
