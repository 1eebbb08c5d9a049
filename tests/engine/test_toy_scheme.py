"""A scheme is a value: one that is defined here serves tokens, and no other file had to know it."""

import pytest
import torch

from octavo.base.errors import UnknownChoice, UsageError
from octavo.engine.sampling import SamplingParams
from octavo.kv.scheme import Plane, Scheme, Tolerance
from octavo.kv.schemes import SCHEMES

TOY = Scheme(
    "toy12",
    (Plane("codes", "int8", lambda width: 2 * width), Plane("peak", "float32", lambda _: 1)),
    encode=lambda x: _encode(x),
    decode=lambda planes: _decode(planes),
    tolerance=Tolerance(of_peak=2**-12),
)


def _encode(x):
    peak = x.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    whole = torch.round(x / peak * 2**12).to(torch.int32)
    high = torch.div(whole, 128, rounding_mode="floor")
    return torch.cat((high, whole - 128 * high), dim=-1).to(torch.int8), peak


def _decode(planes):
    high, low = planes[0].float().chunk(2, dim=-1)
    return (high * 128 + low) / 2**12 * planes[1]


@pytest.fixture
def toy():
    SCHEMES.add(TOY.name, TOY)
    yield TOY
    SCHEMES.remove(TOY.name)


def test_a_toy_scheme_serves_tokens(tiny, prompts, toy):
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    llm = tiny.with_cache(kv_cache_dtype="toy12", debug=True)
    assert llm.cache.kernels == "reference"
    assert llm.cache.bytes_per_token == 2 * 2 * 2 * (2 * 64 + 4)  # layers, sides, heads, a vector's bytes
    want = [answer.token_ids for answer in tiny.generate(prompts, params)]
    assert [answer.token_ids for answer in llm.generate(prompts, params)] == want


def test_it_cannot_have_kernels_it_does_not_bring(tiny, toy):
    with pytest.raises(UsageError, match="toy12 has no row codec"):
        tiny.with_cache(kv_cache_dtype="toy12", kernels="cpu")


def test_it_is_gone_with_its_file(tiny):
    with pytest.raises(UnknownChoice, match="toy12"):
        tiny.with_cache(kv_cache_dtype="toy12")
