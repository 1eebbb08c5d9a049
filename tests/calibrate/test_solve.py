"""The plan solver against all plans there are, and its bytes against those that a cache really takes."""

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.base.errors import AssetError, BadValue, CapacityError
from octavo.calibrate import solve as solver
from octavo.calibrate.budgets import solve_budget, solved_dtypes
from octavo.calibrate.solve import Budget, Choice, Solution, front, parse_budget, solve
from octavo.kv.asset import KVAsset
from octavo.kv.plan import KVPlan, LayerPlan, SidePlan, parse_dtype
from octavo.kv.pool import PagePool
from octavo.kv.schemes import SCHEMES

Layers = list[list[Choice]]
# sums of whole 64ths are exact, so that equal plans are equal to the last bit
choices = st.builds(Choice, st.just("a"), st.integers(1, 60), st.integers(0, 200).map(lambda part: part / 64))
instances = st.lists(st.lists(choices, min_size=1, max_size=4), min_size=1, max_size=4)
fine = st.builds(Choice, st.just("a"), st.integers(1, 999), st.integers(0, 9999).map(lambda part: part / 64))
long_fronts = st.lists(st.lists(fine, min_size=3, max_size=4), min_size=4, max_size=4)


def plans(layers: Layers) -> list[tuple[int, float]]:
    """Bytes and KL of every plan there is."""
    every = itertools.product(*layers)
    return [(sum(choice.page_bytes for choice in plan), sum(choice.kl for choice in plan)) for plan in every]


def check_sums(layers: Layers, found: Solution) -> None:
    picked = [layer[number] for layer, number in zip(layers, found.choices, strict=True)]
    assert found.page_bytes == sum(choice.page_bytes for choice in picked)
    assert found.kl == sum(choice.kl for choice in picked)


# the optimum


@given(instances, st.integers(0, 240))
def test_the_least_divergence_within_bytes(layers, budget):
    fitting = [(kl, size) for size, kl in plans(layers) if size <= budget]
    if not fitting:
        with pytest.raises(CapacityError, match=f"the smallest takes {min(plans(layers))[0]} bytes") as caught:
            solve(layers, page_bytes=budget)
        assert caught.value.hint
        return
    found = solve(layers, page_bytes=budget)
    check_sums(layers, found)
    assert (found.kl, found.page_bytes) == min(fitting)


@given(instances, st.integers(0, 800).map(lambda part: part / 64))
def test_the_fewest_bytes_within_a_divergence(layers, budget):
    good = [(size, kl) for size, kl in plans(layers) if kl <= budget]
    if not good:
        with pytest.raises(CapacityError, match="no plan is that good") as caught:
            solve(layers, kl=budget)
        assert caught.value.hint
        return
    found = solve(layers, kl=budget)
    check_sums(layers, found)
    assert (found.page_bytes, found.kl) == min(good)


@given(instances)
def test_the_front_is_what_no_plan_beats(layers):
    every, found = plans(layers), front(layers)
    points = [(plan.page_bytes, plan.kl) for plan in found]
    assert points == sorted(set(points))
    assert [kl for _, kl in points] == sorted({kl for _, kl in points}, reverse=True)
    for size, kl in points:
        assert not any(s <= size and k <= kl and (s, k) != (size, kl) for s, k in every)
    for size, kl in every:
        assert any(s <= size and k <= kl for s, k in points)
    for plan in found:
        check_sums(layers, plan)


@settings(max_examples=60)
@given(long_fronts)
def test_a_front_that_is_thinned_keeps_the_budget_and_most_of_the_gain(layers):
    every = plans(layers)
    smallest, largest = min(every)[0], max(every)[0]
    lost_bytes = len(layers) * (largest - smallest) / 6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver, "_MOST", 6)
        assert solve(layers, page_bytes=largest).kl == min(kl for _, kl in every)  # the best of all is never lost
        for budget in range(smallest, largest + 1, max(1, (largest - smallest) // 20)):
            found = solve(layers, page_bytes=budget)
            check_sums(layers, found)
            assert found.page_bytes <= budget
            assert found.kl <= min((kl for size, kl in every if size <= budget - lost_bytes), default=float("inf"))


def test_many_layers_of_many_choices():
    """32 layers of 16 pairs: 16^32 plans. The optimum of equal layers with a convex front is all of one choice."""
    layer = [Choice(f"{n}", 1000 + 64 * n, 2.0**-n) for n in range(16)]
    found = solve([layer] * 32, page_bytes=32 * (1000 + 64 * 7))
    assert found.choices == (7,) * 32


# budgets


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("24GiB", {"total_bytes": 24 << 30}),
        ("1.5 GB", {"total_bytes": 1_500_000_000}),
        ("300KiB/token", {"token_bytes": 300 * 1024.0}),
        ("100/token", {"token_bytes": 100.0}),
        ("4.5bit", {"bits": 4.5}),
        ("5 bits", {"bits": 5.0}),
        ("kl<0.01", {"kl": 0.01}),
        ("kl <= 1e-3", {"kl": 0.001}),
    ],
)
def test_budgets(text, want):
    assert parse_budget(text) == Budget(text, **want)


BAD = [
    "", "lots", "0", "-1GiB", "0bit", "4.5.6bit", "bit", "kl<", "kl<0", "kl<-1", "kl<1e999", "kl>0.1", "kl<nan", "nan",
    "/token", "0/token", "5/tok", "9" * 400, "9" * 400 + "GiB", "9" * 400 + "bit",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:12])
def test_what_is_no_budget(text):
    with pytest.raises(BadValue, match="not a budget for the cache") as caught:
        parse_budget(text)
    assert "auto:24GiB" in (caught.value.hint or "")


# bytes are those of the cache

SHAPE = {"layers": 6, "kv_heads": 3, "heads": 6, "head_dim": 80}


def sensitivity(names: Sequence[str] = ("int8", "int4", "bf16")) -> dict[str, Any]:
    """Later layers suffer more, keys more than values."""
    worse = {"bf16": 0.0, "int8": 1.0, "int4": 60.0}
    return {
        "schemes": list(names),
        "k": {name: [1e-4 * worse[name] * 2**n for n in range(SHAPE["layers"])] for name in names},
        "v": {name: [3e-5 * worse[name] * 3 ** (n / 2) for n in range(SHAPE["layers"])] for name in names},
    }


def pool_of(names: Sequence[str], page_tokens: int, pages: int) -> PagePool:
    sides = [[SidePlan(scheme, scheme.rotates) for scheme in parse_dtype(name)] for name in names]
    plan = KVPlan("auto", tuple(LayerPlan(key, value) for key, value in sides))
    return PagePool(plan, plan.layouts(SHAPE["kv_heads"], SHAPE["head_dim"], page_tokens), pages, "cpu")


@pytest.mark.parametrize("page_tokens", [16, 64])
@pytest.mark.parametrize("text", ["5bit", "6.5bit", "1800/token", "2KiB/token", "2.5MiB", "kl<0.05", "kl<0.003"])
def test_bytes_are_those_that_a_pool_takes(text, page_tokens):
    tokens, numbers = 1000, 2 * SHAPE["layers"] * SHAPE["kv_heads"] * SHAPE["head_dim"]
    pages = -(-tokens // page_tokens)
    budget = parse_budget(text)
    found, names = solve_budget(budget, sensitivity(), SHAPE, page_tokens, tokens)
    assert len(set(names)) > 1, "a plan that is the same everywhere tests little"
    taken = pool_of(names, page_tokens, pages).allocated_bytes
    assert taken == pages * found.page_bytes
    token_bytes = taken / (pages * page_tokens)
    limits = (budget.total_bytes, budget.token_bytes, budget.bits and budget.bits * numbers / 8, budget.kl)
    used = (taken, token_bytes, token_bytes, found.kl)
    ((limit, reached),) = ((most, got) for most, got in zip(limits, used, strict=True) if most is not None)
    assert 0.6 * limit < reached <= limit


def test_budgets_that_allow_no_plan():
    for text in ("4bit", "600/token", "1MiB", "kl<1e-9"):
        with pytest.raises(CapacityError) as caught:
            solve_budget(parse_budget(text), sensitivity(("int8", "int4")), SHAPE, 64, 1000)
        assert caught.value.hint


def test_negative_sensitivities_are_noise():
    """A KL measured a little below zero is zero: it must not pay for what another layer loses."""
    noisy = sensitivity(("int8", "int4"))
    noisy["k"]["int8"] = [-1.0] * SHAPE["layers"]
    found, _ = solve_budget(parse_budget("8.5bit"), noisy, SHAPE, 64, 1000)
    assert found.kl == pytest.approx(sum(noisy["v"]["int8"]))


def test_without_sensitivities_there_is_nothing_to_solve():
    asset = cast(KVAsset, SimpleNamespace(path="here", about={"shape": SHAPE}))
    with pytest.raises(AssetError, match="here has no sensitivities to solve `auto:5bit`") as caught:
        solved_dtypes(parse_budget("5bit"), asset, 64, 1000)
    assert "--sensitivity" in (caught.value.hint or "")


def test_every_scheme_can_be_chosen():
    names = [name for name in SCHEMES if name != "fp32"]
    flat = {side: {name: [float(n)] for n, name in enumerate(names)} for side in "kv"}
    shape = SHAPE | {"layers": 1}
    found, (pair,) = solve_budget(Budget("", kl=1e9), {"schemes": names, **flat}, shape, 64, 1000)
    assert pair == "int4,int4"
    assert pool_of([pair], 64, 1).allocated_bytes == found.page_bytes
