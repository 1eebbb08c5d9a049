"""The front and the uniform plans, against all plans of a small model counted out."""

import itertools

import pytest

from octavo.calibrate.budgets import choices_of
from octavo.calibrate.pareto import front_points, pareto_facts, uniform_points

SHAPE = {"layers": 3, "kv_heads": 2, "heads": 4, "head_dim": 64}
MEASURED = {
    "schemes": ["int8", "int4"],
    "tokens": 512,
    "k": {"int8": [1e-4, 2e-4, -1e-6], "int4": [3e-2, 1e-3, 2e-2]},
    "v": {"int8": [5e-5, 4e-5, 1e-4], "int4": [4e-3, 2e-3, 1e-2]},
}


def test_the_front_is_what_no_plan_beats():
    points = front_points(MEASURED, SHAPE, 64)
    every = [
        (sum(c.page_bytes for c in plan) / 64, sum(c.kl for c in plan))
        for plan in itertools.product(*choices_of(MEASURED, 2, 64, 64))
    ]
    assert points == sorted(points)
    for size, kl in points:
        assert kl == pytest.approx(min(b for a, b in every if a <= size))
    for size, kl in every:
        assert any(a <= size and b <= kl + 1e-12 for a, b in points)


def test_uniform_plans():
    found = uniform_points(MEASURED, SHAPE, 64)
    assert list(found) == ["int8", "int8,int4", "int4,int8", "int4"]
    assert found["int4"][1] == pytest.approx(0.051 + 0.016)
    assert found["int8"][1] == pytest.approx(3e-4 + 1.9e-4)  # below zero is noise of the measurement
    assert found["int8"][0] == 2 * 3 * 2 * (64 + 4)
    assert found["int8,int4"][0] == found["int4,int8"][0]


def test_a_long_front_is_thinned_and_keeps_its_ends():
    whole, few = front_points(MEASURED, SHAPE, 64), front_points(MEASURED, SHAPE, 64, most=4)
    assert len(few) == 4 and few[0] == whole[0] and few[-1] == whole[-1] and set(few) <= set(whole)


def test_facts_are_json():
    facts = pareto_facts(MEASURED, SHAPE, 64)
    assert facts["front"][0] == list(front_points(MEASURED, SHAPE, 64)[0])
    assert facts["uniform"]["int8"].keys() == {"bytes_per_token", "kl_predicted"}
    assert pareto_facts(None, SHAPE, 64) == {} == pareto_facts({}, SHAPE, 64)
