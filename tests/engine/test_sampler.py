"""Every way to choose a token, on distributions that can be worked out by hand."""

import itertools

import pytest
import torch

from octavo.base.errors import BadValue
from octavo.engine.request import Request
from octavo.engine.sampler import sample, uniform
from octavo.engine.sampling import SamplingParams

PROBABILITIES = torch.tensor([0.05, 0.4, 0.1, 0.25, 0.2])


def draw(count: int = 400, output=(), prompt=(0,), eos=(), probabilities=PROBABILITIES, **params) -> list[int]:
    """`count` draws with seeds 0..count from one row of known probabilities."""
    rows = probabilities.log().repeat(count, 1)
    requests = [Request(str(i), tuple(prompt), SamplingParams(**params), 0, 99, i, b"") for i in range(count)]
    for request in requests:
        request.tokens += output
    return [chosen.token for chosen in sample(rows, requests, eos)]


def test_greedy_takes_the_best():
    assert set(draw(temperature=0)) == {1}


def test_plain_sampling_follows_the_distribution():
    counts = torch.bincount(torch.tensor(draw(4000)), minlength=5) / 4000
    assert (counts - PROBABILITIES).abs().max() < 0.03


def test_temperature_sharpens_and_flattens():
    sharp, flat = draw(2000, temperature=0.3), draw(2000, temperature=5.0)
    assert sharp.count(1) > 0.7 * 2000
    want = (PROBABILITIES.log() / 5).softmax(-1)
    counts = torch.bincount(torch.tensor(flat), minlength=5) / 2000
    assert (counts - want).abs().max() < 0.04


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": -1}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.3}, {1}),
        ({"top_p": 0.6}, {1, 3}),
        ({"top_p": 0.66}, {1, 3, 4}),
        ({"min_p": 0.45}, {1, 3, 4}),
        ({"min_p": 1.0}, {1}),
        ({"top_k": 3, "min_p": 0.6}, {1, 3}),
        ({"logit_bias": {2: 100.0}}, {2}),
        ({"logit_bias": {1: -100.0}, "top_k": 1}, {3}),
    ],
)
def test_filters(params, allowed):
    assert set(draw(600, **params)) == allowed


def test_penalties():
    assert set(draw(temperature=0, output=[1], presence_penalty=1.0)) == {3}
    assert set(draw(temperature=0, output=[1, 1], frequency_penalty=0.5)) == {3}
    assert set(draw(temperature=0, prompt=(1,), repetition_penalty=2.0)) == {3}
    assert set(draw(temperature=0, prompt=(1,), presence_penalty=2.0)) == {1}, "the prompt bears no presence penalty"


def test_min_tokens_bans_an_early_end():
    assert 1 not in draw(eos=(1,), min_tokens=3, output=[2, 2])
    assert 3 not in draw(stop_token_ids=[3], min_tokens=3, output=[2, 2])
    assert 1 in draw(eos=(1,), min_tokens=2, output=[2, 2])


def test_a_row_is_sampled_alike_alone_and_in_any_company():
    torch.manual_seed(0)
    rows = torch.randn(16, 1000)
    params = [
        SamplingParams(temperature=t, top_p=p, top_k=k, min_p=m)
        for t in (0.0, 0.7) for p in (1.0, 0.8) for k in (0, 20) for m in (0.0, 0.05)
    ]  # fmt: skip
    requests = [Request(str(i), (1,), p, 0, 99, 1000 + i, b"") for i, p in enumerate(params)]
    together = [chosen.token for chosen in sample(rows, requests, ())]
    alone = [sample(rows[i : i + 1], [requests[i]], ())[0].token for i in range(16)]
    backwards = [chosen.token for chosen in sample(rows.flip(0), requests[::-1], ())][::-1]
    assert together == alone == backwards


def one_by_one(row: torch.Tensor, request: Request) -> int:
    """The definition of a draw, for a row `[V]` alone."""
    params = request.params
    weights = (row.double() / params.temperature).softmax(-1)
    allowed = torch.ones_like(weights, dtype=torch.bool)
    if 0 < params.top_k < len(row):
        allowed &= weights >= weights.topk(params.top_k).values[-1]
    if params.top_p < 1.0:
        ordered, order = weights.sort(descending=True, stable=True)
        allowed[order[ordered.cumsum(-1) - ordered >= params.top_p]] = False
    if params.min_p > 0.0:
        allowed &= weights >= params.min_p * weights.max()
    cumulative = torch.where(allowed, weights, 0.0).cumsum(-1)
    target = uniform(request.seed, len(request.tokens)) * cumulative[-1]
    return int(torch.searchsorted(cumulative, target.unsqueeze(0), right=True).clamp(max=int(allowed.nonzero()[-1])))


@pytest.mark.parametrize("most", [1 << 22, 2500])
def test_rows_drawn_together_are_drawn_by_the_definition(monkeypatch, most):
    """Any mix of filters, ties and banned tokens, in groups of any size."""
    monkeypatch.setattr("octavo.engine.sampler._MOST_NUMBERS", most)
    torch.manual_seed(1)
    rows = torch.randn(300, 400) * 3
    rows[::3] = rows[::3].round()  # ties
    rows[::5, 17:60] = float("-inf")
    requests = [
        Request(str(n), (1,) * (n % 4 + 1), SamplingParams(temperature=t, top_k=k, top_p=p, min_p=m), 0, 99, n, b"")
        for n, (t, k, p, m) in enumerate(itertools.islice(itertools.cycle(itertools.product(
            (0.3, 1.0, 2.5), (0, 1, 7, 50, 400, 1000), (0.05, 0.9, 1.0), (0.0, 0.1, 1.0))), 300))
    ]  # fmt: skip
    want = [one_by_one(row, request) for row, request in zip(rows, requests, strict=True)]
    assert [chosen.token for chosen in sample(rows, requests, ())] == want
    assert len(set(want)) > 50


@pytest.mark.parametrize("reshaped", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_16_bits_give_what_they_give_in_fp32(dtype, reshaped: bool):
    """Where one row is reshaped, all are in fp32 from there on."""
    torch.manual_seed(2)
    rows = (torch.randn(200, 300) * 3).to(dtype)
    before = rows.clone()
    several = [
        {"temperature": 0}, {"temperature": 0, "logprobs": 4}, {"temperature": 1.0}, {"top_p": 0.9, "top_k": 20},
        {"temperature": 0.7, "min_p": 0.1, "logprobs": 2},
    ]  # fmt: skip
    if reshaped:
        several += [
            {"temperature": 0, "logit_bias": {5: 3.3, 7: -100.0}}, {"repetition_penalty": 1.3},
            {"temperature": 0, "presence_penalty": 0.3},
        ]  # fmt: skip
    each = itertools.cycle(several)
    requests = [Request(str(n), (3, 9), SamplingParams(**next(each)), 0, 99, n, b"") for n in range(len(rows))]
    for request in requests:
        request.tokens += [n % 300 for n in (4, 4, 250)]
    assert sample(rows, requests, ()) == sample(rows.float(), requests, ())
    assert torch.equal(rows, before)


def test_uniform_is_spread_and_repeatable():
    values = [uniform(5, position) for position in range(5000)]
    assert values == [uniform(5, position) for position in range(5000)]
    assert all(0 <= value < 1 for value in values)
    assert abs(sum(values) / 5000 - 0.5) < 0.02
    assert uniform(5, 1) != uniform(6, 1)


def test_logprobs_are_of_the_model_not_of_the_filter():
    request = Request("a", (0,), SamplingParams(temperature=0.5, top_k=1, logprobs=3), 0, 9, 0, b"")
    [chosen] = sample(PROBABILITIES.log().unsqueeze(0), [request], ())
    assert chosen.logprobs is not None
    assert chosen.logprobs.logprob == pytest.approx(float(PROBABILITIES[1].log()))
    assert [token for token, _ in chosen.logprobs.top] == [1, 3, 4]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"temperature": "hot"},
        {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -2}, {"top_k": 1.5}, {"min_p": -1}, {"min_p": 2},
        {"max_tokens": 0}, {"max_tokens": -3}, {"max_tokens": True}, {"min_tokens": -1}, {"min_tokens": 20},
        {"repetition_penalty": 0.0}, {"presence_penalty": 3.0}, {"frequency_penalty": -2.5}, {"seed": 1.0},
        {"stop": [""]}, {"stop": ["x"] * 33}, {"stop": [5]}, {"stop_token_ids": [-1]}, {"logprobs": 65},
        {"logprobs": -1}, {"logit_bias": {-1: 0.0}}, {"logit_bias": {1: 101.0}}, {"logit_bias": {1: float("nan")}},
    ],
)  # fmt: skip
def test_out_of_range_values_are_refused(wrong):
    with pytest.raises(BadValue, match=next(iter(wrong))):
        SamplingParams(**wrong)
